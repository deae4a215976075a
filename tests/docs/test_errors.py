"""Tables of errors quote the messages of the code.

Each row of a table has a case here that raises its error. Case and row belong together by how the
row begins.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import spacy
import torch
import transformers
from safetensors.torch import load_file, save_file
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from thinc.api import Config

from spacy_distil.distillation import distil_encoder, distil_pipeline
from spacy_distil.distillation.encoder.building import CorpusPlan, build
from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.config import TrainingSettings
from spacy_distil.distillation.encoder.objectives import (
    Loss,
    Needs,
    Objective,
    Outputs,
    distil_objectives,
)
from spacy_distil.distillation.encoder.steps import plan_steps
from spacy_distil.distillation.pipeline.cache import store
from spacy_distil.encoding import PieceTokenizer
from spacy_distil.engines.onnx_file import check_tensors
from spacy_distil.engines.pretrained import load_encoder
from spacy_distil.errors import DistilError
from spacy_distil.export.families import read_weights
from spacy_distil.students.teachers import load_teacher
from tests.docs.configs import encoder_config, pipeline_config
from tests.docs.pages import COMPONENT, ENCODER, PIPELINE, table_after
from tests.encoding.test_pieces import with_pattern
from tests.teachers import WORDS, write_teacher
from tests.util import (
    LISTENER,
    STOCK_LISTENER,
    adam,
    add_heads,
    head_config,
    make_examples,
    make_nlp,
    registry,
    write_encoder,
)

Cases = Mapping[str, Callable[[Any], Any]]


def rows_of(heading: str, column: int, page: str) -> list[str]:
    """Read the messages of a table."""
    return [row[column].removeprefix("`").removesuffix("`") for row in table_after(heading, page)]


def check_message(message: str, cases: Cases, setup: Any) -> None:
    """Check that the case of a message raises it. An ellipsis stands for any text."""
    (case,) = (cases[each] for each in cases if message.startswith(each))
    pattern = "(?s)" + ".*".join(map(re.escape, message.split("…")))
    with pytest.raises(DistilError, match=pattern):
        case(setup)


# The component


@dataclass(frozen=True)
class Setup:
    """Things that errors are made from. path: an empty directory."""

    encoder: Path
    onnx: Path
    path: Path


def refused(setup: Setup, config: Any) -> None:
    transformers.AutoModel.from_config(config).save_pretrained(setup.path)
    load_encoder(str(setup.path))


def small(kind: str, **settings: Any) -> Any:
    return transformers.AutoConfig.for_model(kind, vocab_size=100, **settings)


def two_encoders(setup: Setup) -> None:
    nlp = make_nlp(setup.encoder, initialize=False)
    config = nlp.config["components"]["transformer"]["model"]
    nlp.add_pipe("distil_transformer", name="second", config={"model": config})
    nlp.add_pipe("tagger", config=head_config("tagger", {**LISTENER, "upstream": "transformer"}))


def without_annotating(setup: Setup) -> None:
    nlp = make_nlp(setup.encoder, ["tagger"])
    nlp.update(make_examples(nlp), sgd=adam(), exclude=["transformer"])


def without_encoder(setup: Setup) -> None:
    nlp = make_nlp(setup.encoder, ["tagger"])
    with nlp.select_pipes(enable=["tagger"]):
        nlp("Ann")


def annotating_alone(setup: Setup) -> None:
    nlp = make_nlp(setup.encoder, ["tagger"], initialize=False)
    nlp.config["training"]["annotating_components"] = ["tagger"]
    nlp.initialize(lambda: make_examples(nlp))


def with_another_tensor(setup: Setup) -> None:
    nlp = make_nlp(setup.encoder, ["tagger"])
    doc = nlp("Ann visited Rome.")
    doc.tensor = doc.tensor[:, 1:]
    nlp.get_pipe("tagger")(doc)


def with_radam(setup: Setup) -> None:
    nlp = make_nlp(setup.encoder, ["tagger"])
    nlp.update(make_examples(nlp), sgd=registry.optimizers.get("RAdam.v1")(0.1))


def train_onnx(setup: Setup) -> None:
    nlp = spacy.load(setup.onnx)
    nlp.update(make_examples(nlp), sgd=adam())


def alone(setup: Setup) -> None:
    nlp: Any = spacy.blank("en")
    add_heads(nlp, ["tagger"])
    nlp.initialize(lambda: make_examples(nlp))


def load_onnx_as_torch(setup: Setup) -> None:
    spacy.load(setup.onnx, config={"components": {"transformer": {"model": {"engine": "torch"}}}})


def load_edited(setup: Setup) -> None:
    pipeline = shutil.copytree(setup.onnx, setup.path / "edited")
    with (pipeline / "transformer" / "config.json").open("a") as file:
        file.write(" ")
    spacy.load(pipeline)


def copied(setup: Setup) -> Path:
    return Path(shutil.copytree(setup.encoder, setup.path / "encoder"))


def load_with(setup: Setup, **changes: Any) -> None:
    encoder = copied(setup)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, **changes}))
    if "vocab_size" in changes:
        weights = load_file(encoder / "model.safetensors")
        name = "embeddings.word_embeddings.weight"
        weights[name] = weights[name][: changes["vocab_size"]].clone()
        save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    make_nlp(encoder)


def load_nan(setup: Setup) -> None:
    encoder = copied(setup)
    weights = load_file(encoder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    make_nlp(encoder)


def load_pickle(setup: Setup) -> None:
    encoder = copied(setup)
    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    make_nlp(encoder)


def load_external(setup: Setup) -> None:
    model = onnx.load(setup.onnx / "transformer" / "model.onnx")
    onnx.save_model(
        model,
        setup.path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    check_tensors((setup.path / "model.onnx").read_bytes(), "model.onnx")


# By how a row begins, what raises its error.
REFUSED: dict[str, Callable[[Setup], Any]] = {
    "it has a decoder": lambda s: refused(
        s, small("t5", d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    ),
    "it reads in one direction": lambda s: refused(
        s,
        small(
            "llama",
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=16,
            max_position_embeddings=32,
        ),
    ),
    "it takes no attention_mask": lambda s: refused(
        s, small("fnet", hidden_size=16, num_hidden_layers=1, intermediate_size=16)
    ),
    "A 'longformer' encoder": lambda s: read_weights(
        {"config.json": b'{"model_type": "longformer"}'}
    ),
}
ERRORS: dict[str, Callable[[Setup], Any]] = {
    "The encoder has no weights yet.": lambda s: make_nlp(s.encoder, initialize=False)("Ann"),
    "No encoder could be loaded": lambda s: make_nlp(s.path),
    "this encoder takes at most": lambda s: make_nlp(s.encoder, window=5000),
    "expected at most half": lambda s: make_nlp(s.encoder, overlap=60),
    "cannot be used": lambda s: make_nlp(s.encoder, device="cuda:99"),
    "listens for vectors": lambda s: make_nlp(
        s.encoder, ["tagger"], listener={**STOCK_LISTENER, "width": 96}
    ),
    "listens to … for vectors of unknown width": alone,
    "Without its encoder": without_encoder,
    "which has set no doc.tensor": without_annotating,
    "annotating_components has 'tagger'": annotating_alone,
    "The doc.tensor of the doc": with_another_tensor,
    "but would read the vectors of": two_encoders,
    "distil_transformer trains with AdamW.": with_radam,
    "This encoder cannot be trained": train_onnx,
    "model.safetensors is missing": load_onnx_as_torch,
    "has changed": load_edited,
    "config.json has": lambda s: load_with(s, layer_norm_eps=-1.0),
    "have values that are not finite": load_nan,
    "Pickled weights": load_pickle,
    "pieces up to number": lambda s: load_with(s, vocab_size=200),
    "The tokenizer fails on": lambda s: PieceTokenizer(with_pattern("(a+)+$", "normalizer")),
    "keeps the tensor": load_external,
}


REFUSED_ROWS = rows_of("## Which encoders", 1, COMPONENT)
ERROR_ROWS = rows_of("## Errors", 0, COMPONENT)


@pytest.fixture
def setup(bert_dir: Path, onnx_pipeline: Path, tmp_path: Path) -> Setup:
    return Setup(bert_dir, onnx_pipeline, tmp_path)


@pytest.mark.parametrize("message", REFUSED_ROWS)
def test_what_is_said_of_encoders_that_are_refused(message: str, setup: Setup) -> None:
    check_message(message, REFUSED, setup)


@pytest.mark.parametrize("message", ERROR_ROWS)
def test_errors_of_the_component(message: str, setup: Setup) -> None:
    check_message(message, ERRORS, setup)


# Encoder distillation


@dataclass(frozen=True)
class Distillation:
    """Things that errors of an encoder distillation are made from.

    teacher, bare, albert: with a masked-LM head, without one, and an ALBERT.
    text: a file of it.
    finished: the output of a run that `distil` makes.
    path: an empty directory.
    """

    teacher: Path
    bare: Path
    albert: Path
    text: Path
    finished: Path
    path: Path

    def distil(self, output: Path | None = None, **changes: dict[str, Any]) -> None:
        """changes: of the config, by its sections."""
        config = encoder_config(teacher=self.teacher, text=self.text)
        for name, section in changes.items():
            config[name] = {**config[name], **section}
        distil_encoder(config, output or self.path / "out", gpu_id=-1)

    def student(self, **settings: Any) -> None:
        self.distil(student=settings)

    def objective(self, name: str, **settings: Any) -> None:
        """With an objective switched on."""
        block = encoder_config(teacher="", text="")["objectives"][name]
        self.distil(objectives={name: {**block, "weight": 1.0, **settings}})


@pytest.fixture(scope="module")
def distillation(tmp_path_factory: pytest.TempPathFactory) -> Distillation:
    path = tmp_path_factory.mktemp("distillation")
    for name, family, head in (
        ("teacher", "bert", True),
        ("bare", "bert", False),
        ("albert", "albert", True),
    ):
        write_teacher(path / name, family, head=head)
    (path / "text.txt").write_text(" ".join(WORDS * 20), encoding="utf8")
    names = ("teacher", "bare", "albert", "text.txt", "finished", "none")
    setup = Distillation(*(path / name for name in names))
    setup.distil(setup.finished)
    return setup


class Terminated(Objective):
    """In its first batch the process is told to end."""

    needs = Needs(teacher=False)

    def forward(self, outputs: Outputs) -> Loss:
        os.kill(os.getpid(), signal.SIGTERM)
        return Loss(outputs.student.last_hidden.sum(), outputs.batch.n_real)


def terminate(setup: Distillation) -> None:
    distil_objectives.register("tests.TerminatedAtOnce.v1", func=lambda: Terminated(1.0))
    setup.distil(objectives={"terminated": {"@distil_objectives": "tests.TerminatedAtOnce.v1"}})


def unknown_family(setup: Distillation) -> None:
    (setup.path / "config.json").write_text('{"model_type": "deberta-v2"}')
    setup.distil(teacher={"name": str(setup.path)})


def little_room(setup: Distillation) -> None:
    text = setup.path / "text.txt"
    with text.open("wb") as file:
        file.truncate(1 << 43)  # takes no room
    tokenizer = load_teacher(str(setup.teacher)).tokenizer
    plan = CorpusPlan("corpus.train", [text], None, "fingerprint")
    build(plan, setup.path / "cache", tokenizer=tokenizer, block_size=16)


def damaged_cache(setup: Distillation) -> None:
    cache = shutil.copytree(setup.finished / "cache", setup.path / "cache")
    for shard in cache.rglob("*.npy"):
        shard.write_bytes(b"")
    setup.distil(corpus={"cache": str(cache)})


def launched(setup: Distillation) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        distil_encoder(encoder_config(teacher="", text=""), setup.path / "out", gpu_id=0)


def no_compiler(setup: Distillation) -> None:
    from torch._inductor import config

    with pytest.MonkeyPatch.context() as patch, config.patch({"cpp.cxx": ("/no/compiler",)}):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(setup.path / "inductor"))
        setup.distil(training={"compile": True})


class FilledDisk(Objective):
    """In its third step, no file may be longer than 20 kB, as if the disk were full."""

    needs = Needs(teacher=False)

    def forward(self, outputs: Outputs) -> Loss:
        import resource

        if outputs.step == 2:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return Loss(outputs.student.last_hidden.sum(), outputs.batch.n_real)


def full_disk(setup: Distillation) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    distil_objectives.register("tests.FilledDisk.v1", func=lambda: FilledDisk(1.0))
    try:
        setup.distil(
            objectives={"filled": {"@distil_objectives": "tests.FilledDisk.v1"}},
            training={"max_steps": 4, "checkpoint_frequency": 1, "epochs": None},
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def damaged_checkpoint(setup: Distillation) -> None:
    (setup.path / "step-00000001.pt").write_bytes(b"cut short")
    Checkpoints(setup.path, keep=1).load(1, torch.device("cpu"))


def resume_another(setup: Distillation) -> None:
    config = encoder_config(teacher=setup.teacher, text=setup.text)
    overrides = {"training.seed": 5}
    distil_encoder(config, setup.finished, overrides=overrides, gpu_id=-1, resume=True)


def in_anothers_directory(setup: Distillation) -> None:
    (setup.path / "thesis.tex").write_text("precious")
    setup.distil(setup.path)


STAGE = {"objectives": ["soft_targets", "masked_lm", "cosine"]}
# By how a row begins, what raises its error.
WRONG: dict[str, Callable[[Distillation], Any]] = {
    "has no masked-LM head": lambda s: s.distil(teacher={"name": str(s.bare)}),
    "a teacher must be one of": unknown_family,
    "cannot be loaded": lambda s: s.distil(teacher={"name": "nobody/nothing"}),
    "corpus.train is empty": lambda s: s.distil(corpus={"train": []}),
    "expected one of the two": lambda s: s.distil(corpus={"languages": {"de": ["a.txt"]}}),
    "name held-out text by language": lambda s: s.distil(
        corpus={"train": [], "dev": ["a.txt"], "languages": {"de": ["b.txt"]}}
    ),
    "expected one of the names": lambda s: s.distil(corpus={"dev_languages": {"de": ["a.txt"]}}),
    "in the name of a language": lambda s: s.distil(
        corpus={"train": [], "languages": {"de at": ["a.txt"]}}
    ),
    "the teacher has positions": lambda s: s.distil(corpus={"block_size": 512}),
    "nothing is left": lambda s: s.distil(corpus={"max_blocks": 1}),
    "its blocks need about": little_room,
    "is missing or damaged": damaged_cache,
    "With this width": lambda s: s.student(width=12, heads=2),
    "can only be left out": lambda s: s.distil(teacher={"name": str(s.albert)}, student={"ffn": 8}),
    "must divide the widths": lambda s: s.objective("relations", heads=5),
    "the student has no layer": lambda s: s.objective("hidden", layers=[[9, 1]]),
    "stands for something else": lambda s: s.distil(
        objectives={"total": {"@distil_objectives": "spacy-distil.Cosine.v1"}}
    ),
    "no stage names": lambda s: s.distil(stages={"one": {"objectives": ["cosine"]}}),
    "none is left for it": lambda s: s.distil(
        stages={"one": {**STAGE, "share": 1e-6}, "two": STAGE}
    ),
    "at least the number of processes": lambda s: plan_steps(
        TrainingSettings(batch_size=1, max_steps=1), n_blocks=10, n_processes=2
    ),
    "each process that a launcher": launched,
    "training has diverged": lambda s: s.distil(training={"learn_rate": 1e30, "warmup": 0}),
    "torch cannot compile": no_compiler,
    "stopped by SIGTERM": terminate,
    "cannot be written: … The checkpoint": full_disk,
    "cannot be written: … Choose a place": lambda s: s.distil(s.text / "out"),
    "the checkpoint …": damaged_checkpoint,
    "is not empty.": lambda s: s.distil(s.finished),
    "cannot be resumed": resume_another,
    "holds files, but": in_anothers_directory,
}

ENCODER_ROWS = rows_of("## When something goes wrong", 0, ENCODER)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(message, marks=[pytest.mark.slow] if "compile" in message else [])
        for message in ENCODER_ROWS
    ],
)
def test_errors_of_encoder_distillation(
    message: str, distillation: Distillation, tmp_path: Path
) -> None:
    check_message(message, WRONG, replace(distillation, path=tmp_path))


# Pipeline distillation


@dataclass(frozen=True)
class PipelineDistillation:
    """Things that errors of a pipeline distillation are made from.

    teacher: has a tagger, an ner and a textcat on a distil_transformer.
    data: directory with train.spacy, dev.spacy and text.txt.
    finished: output of a finished run.
    path: an empty directory.
    """

    teacher: Language
    data: Path
    finished: Path
    path: Path

    def config(self) -> Config:
        paths = {name: self.data / f"{name}.spacy" for name in ("train", "dev")}
        return pipeline_config(**paths, text=self.data / "text.txt")

    def distil(
        self,
        output: Path | None = None,
        *,
        config: Config | None = None,
        teacher: Language | None = None,
        resume: bool = False,
        **changes: Any,
    ) -> None:
        """Run it. changes: settings by dotted name, with __ for the dot."""
        config = self.config() if config is None else config
        for name, value in changes.items():
            *sections, setting = name.split("__")
            block: Any = config
            for section in sections:
                block = block.setdefault(section, {})
            block[setting] = value
        output = output or self.path / "out"
        distil_pipeline(teacher or self.teacher, config, output, resume=resume)


@pytest.fixture(scope="module")
def pipeline_distillation(tmp_path_factory: pytest.TempPathFactory) -> PipelineDistillation:
    path = tmp_path_factory.mktemp("pipeline")
    encoder = write_encoder(path / "encoder", "distilbert", positions=512)
    teacher = make_nlp(encoder, ["tagger", "ner", "textcat"])
    docs = [example.reference for example in make_examples(teacher)]
    for name in ("train", "dev"):
        DocBin(docs=docs, store_user_data=True).to_disk(path / f"{name}.spacy")
    DocBin().to_disk(path / "empty.spacy")
    (path / "text.txt").write_text("\n\n".join(doc.text for doc in docs), encoding="utf8")
    setup = PipelineDistillation(teacher, path, path / "finished", path / "none")
    setup.distil(setup.finished)
    return setup


def without_section(setup: PipelineDistillation) -> None:
    config = setup.config()
    del config["distillation"]
    setup.distil(config=config)


def with_other_labels(setup: PipelineDistillation) -> None:
    nlp = spacy.blank("en")
    doc = nlp("Ann visited Rome.")
    doc.cats = {"unheard_of": 1.0}
    DocBin(docs=[doc]).to_disk(setup.path / "train.spacy")
    setup.distil(paths__train=str(setup.path / "train.spacy"))


def from_a_cnn(setup: PipelineDistillation) -> Language:
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def with_spancat(setup: PipelineDistillation) -> None:
    config = setup.config()
    config["nlp"]["pipeline"].append("spancat")
    config["components"]["spancat"] = {"factory": "spancat"}
    nlp = spacy.blank("en")
    docs = list(DocBin().from_disk(setup.data / "train.spacy").get_docs(nlp.vocab))
    for doc in docs:
        doc.spans["sc"] = [Span(doc, 0, 1, "FIRST")]
    DocBin(docs=docs).to_disk(setup.path / "train.spacy")
    setup.distil(config=config, paths__train=str(setup.path / "train.spacy"))


def with_a_full_disk(setup: PipelineDistillation) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "free_bytes", lambda _: 0)
        setup.distil()


def with_a_damaged_cache(setup: PipelineDistillation) -> None:
    cache = shutil.copytree(setup.finished / "cache", setup.path / "cache")
    for shard in cache.glob("*.safetensors"):
        shard.write_bytes(b"cut short")
    setup.distil(distillation__cache=str(cache))


def with_the_cache_of_other_documents(setup: PipelineDistillation) -> None:
    cache = str(setup.finished / "cache")
    setup.distil(distillation__cache=cache, distillation__corpus=None)


def in_a_directory_of_others(setup: PipelineDistillation) -> None:
    (setup.path / "thesis.tex").write_text("precious")
    setup.distil(setup.path)


def terminate_pipeline(setup: PipelineDistillation) -> None:
    def make() -> Callable[[Language, Any], None]:
        return lambda nlp, info: os.kill(os.getpid(), signal.SIGTERM)

    registry.callbacks.register("tests.TerminatedAtOnce.v1", func=make)
    setup.distil(training__before_update={"@callbacks": "tests.TerminatedAtOnce.v1"})


def with_silver(setup: PipelineDistillation) -> None:
    setup.distil(distillation__pipes__ner={"target": "silver", "weight": 0.5})


def with_bare_dev(setup: PipelineDistillation) -> None:
    doc = spacy.blank("en")("Ann visited Rome.")
    DocBin(docs=[doc]).to_disk(setup.path / "dev.spacy")
    setup.distil(paths__dev=str(setup.path / "dev.spacy"))


def with_a_pipe_that_nobody_knows(setup: PipelineDistillation) -> None:
    config = setup.config()
    config["nlp"]["pipeline"].append("parser")
    config["components"]["parser"] = {"factory": "parser"}
    setup.distil(config=config)


def with_a_component(
    setup: PipelineDistillation, component: Callable[[Doc], Doc], pipe: str, **settings: Any
) -> None:
    """Distil from a component, which sets the annotation of a pipe, on text alone."""
    Language.component("tests_of_the_page", func=component)
    teacher = spacy.blank("en")
    teacher.add_pipe("tests_of_the_page")
    config = setup.config()
    config["nlp"]["pipeline"] = ["transformer", pipe]
    config["components"] = {name: config["components"][name] for name in config["nlp"]["pipeline"]}
    config["paths"].update(train=None, dev=None, encoder=str(setup.data / "encoder"))
    settings = {"teacher": "tests_of_the_page", **settings}
    setup.distil(config=config, teacher=teacher, **{f"distillation__pipes__{pipe}": settings})


def set_cats(doc: Doc) -> Doc:
    doc.cats = {"a": 3.0, "b": -1.0}
    return doc


def set_spans(doc: Doc) -> Doc:
    doc.spans["sc"] = [doc[:1]]
    return doc


def fail(doc: Doc) -> Doc:
    raise OSError("the service is busy")


def with_one_text(setup: PipelineDistillation) -> None:
    (setup.path / "one.txt").write_text("Ann visited Rome.")
    setup.distil(paths__train=None, paths__dev=None, paths__text=str(setup.path / "one.txt"))


def with_a_tokenizer_of_code(setup: PipelineDistillation) -> None:
    teacher = from_a_cnn(setup)
    teacher.tokenizer = partial(teacher.tokenizer)
    setup.distil(teacher=teacher)


def with_vectors_of_another_width(setup: PipelineDistillation) -> None:
    encoder = write_encoder(setup.path / "narrow", "distilbert", positions=512, width=16)
    setup.distil(
        paths__encoder=str(encoder),
        distillation__student__start="config",
        distillation__stages__vectors__share=0.5,
    )


def with_a_long_original(setup: PipelineDistillation) -> None:
    setup.path.mkdir(exist_ok=True)
    line = {"text": "Hallo Welt " * 30_000, "original": "hello world"}
    path = setup.path / "texts.jsonl"
    path.write_text(json.dumps(line), encoding="utf8")
    setup.distil(paths__text=str(path), distillation__stages__vectors__share=0.5)


PIPELINE_CASES: dict[str, Callable[[PipelineDistillation], Any]] = {
    "The config has no section": without_section,
    "has no path.": lambda s: s.distil(paths__text=None),
    "There is no path": lambda s: s.distil(paths__train=None, paths__text=None),
    "learns from annotation alone, but": lambda s: s.distil(
        paths__train=None, distillation__stages__gold__share=0.5
    ),
    "has no second document": with_one_text,
    "has set nothing on": lambda s: with_a_component(s, lambda doc: doc, "ner"),
    "after 0 retries": lambda s: with_a_component(s, fail, "ner"),
    "expected a probability": lambda s: with_a_component(s, set_cats, "textcat"),
    "has no attrs": lambda s: with_a_component(s, set_spans, "ner", spans_key="sc", threshold=0.5),
    "The training corpus has": lambda s: s.distil(paths__train=str(s.data / "empty.spacy")),
    "The development documents have": with_bare_dev,
    "so they have nothing": with_a_pipe_that_nobody_knows,
    "so doc.vector of one": with_vectors_of_another_width,
    "Cut both into sentences": with_a_long_original,
    "The teacher's tokenizer is a": with_a_tokenizer_of_code,
    "The development corpus": lambda s: s.distil(paths__dev=str(s.data / "empty.spacy")),
    "expected a whole number above 0, the steps of": lambda s: s.distil(training__max_steps=0),
    "expected a whole number above 0, the steps from": lambda s: s.distil(
        training__eval_frequency=0
    ),
    "which cannot be weighted": lambda s: s.distil(training__score_weights__ents_per_type=0.5),
    "The student's config needs": lambda s: s.distil(components__tagger__factory="my_tagger"),
    "The student's config cannot": lambda s: s.distil(components__tagger={"source": "/nope"}),
    "Set max_epochs to 0": lambda s: s.distil(training__max_epochs=3),
    "makes no batch": lambda s: s.distil(
        training__batcher__size=1,
        training__batcher__tolerance=0.0,
        training__batcher__discard_oversize=True,
    ),
    "is no stage": lambda s: s.distil(distillation__stages__final={"share": 1.0}),
    "none is left for it": lambda s: s.distil(distillation__stages__gold={"share": 1e-6}),
    "the student has no such pipe": lambda s: s.distil(distillation__pipes__parser={"weight": 1.0}),
    "the teacher has no such pipe": lambda s: s.distil(
        distillation__pipes__ner={"teacher": "entities"}
    ),
    "so target can only be": lambda s: s.distil(distillation__pipes__tagger={"target": "silver"}),
    "silver annotation is learned": with_silver,
    "has labels that pipes": with_other_labels,
    'student.start = "teacher"': lambda s: s.distil(
        teacher=from_a_cnn(s), distillation__student__start="teacher"
    ),
    "has no distil_transformer": lambda s: s.distil(
        teacher=from_a_cnn(s),
        paths__encoder=str(s.data / "encoder"),
        distillation__stages__hidden__share=0.5,
    ),
    "cannot tell documents": with_spancat,
    "Changed since it was made": with_the_cache_of_other_documents,
    "more, but the disk of": with_a_full_disk,
    "stopped by SIGTERM": terminate_pipeline,
    "cannot be written: … Choose a place": lambda s: s.distil(s.data / "text.txt" / "out"),
    "is damaged": with_a_damaged_cache,
    "is not empty.": lambda s: s.distil(s.finished),
    "cannot be resumed": lambda s: s.distil(s.finished, resume=True, system__seed=5),
    "holds files, but": in_a_directory_of_others,
}
PIPELINE_ROWS = rows_of("## When something goes wrong", 0, PIPELINE)


@pytest.mark.parametrize("message", PIPELINE_ROWS)
def test_errors_of_pipeline_distillation(
    message: str, pipeline_distillation: PipelineDistillation, tmp_path: Path
) -> None:
    check_message(message, PIPELINE_CASES, replace(pipeline_distillation, path=tmp_path))


@pytest.mark.parametrize(
    ("rows", "cases"),
    [
        (REFUSED_ROWS, REFUSED),
        (ERROR_ROWS, ERRORS),
        (ENCODER_ROWS, WRONG),
        (PIPELINE_ROWS, PIPELINE_CASES),
    ],
)
def test_every_case_stands_in_a_table(rows: list[str], cases: Cases) -> None:
    assert len(rows) == len(cases)
