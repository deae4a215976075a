"""The pages of docs/ and the README: every code block is run, and tables say what the code does.
They, and those of benchmarks/, name files that exist.

The blocks of a page, in the README those of a section, run one after the other in a directory of
their own, which has what a reader would have. Names of encoders on the hub are directories with
small random ones there, which go before the hub, trainings take two steps (`shorten`), and of a
launcher's line the launcher itself only reads its options.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import spacy
import srsly
import torch
import transformers
from accelerate.commands.launch import launch_command_parser
from spacy.cli._util import app
from spacy.schemas import ConfigSchemaTraining
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus
from spacy.training.initialize import init_nlp
from spacy.util import load_config
from thinc.api import Config
from torch.distributed.run import get_args_parser as torchrun_parser
from typer.testing import CliRunner

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.cli.configs import encoder_config, training_config
from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.component.listener import Listener
from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.building import Plan, build
from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.config import (
    FREE_ON_RESUME,
    CorpusSettings,
    StageSettings,
    StudentSettings,
    TeacherSettings,
    TrainingSettings,
)
from spacy_distil.distillation.encoder.objectives import (
    Cosine,
    Loss,
    MaskedLM,
    Needs,
    Objective,
    Outputs,
    SoftTargets,
    distil_objectives,
)
from spacy_distil.distillation.encoder.steps import plan_steps
from spacy_distil.engines.pretrained import load_encoder
from spacy_distil.errors import DistilError
from spacy_distil.export.families import read_weights
from spacy_distil.runs.settings import Section
from spacy_distil.students.families import CUTTABLE
from spacy_distil.students.flops import encoder_flops, head_flops
from spacy_distil.students.layer_choice import choose_layers
from spacy_distil.students.teachers import FAMILIES, load_teacher
from tests.life.corpus import make_annotated
from tests.teachers import WORDS, write_teacher
from tests.util import (
    LISTENER,
    STOCK_LISTENER,
    adam,
    add_heads,
    build_tokenizer,
    head_config,
    make_examples,
    make_nlp,
    registry,
    special_pieces,
    write_encoder,
)

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
DISTILLATION = "docs/distillation.md"
BENCHMARKS = ("benchmarks/README.md", "benchmarks/peers.md")

# Blocks that are not run here, by their page and a part of them, and why.
NOT_RUN = {
    ("README.md", '-e ".[demo]"'): "sets up an environment and runs the project: .ci/run does",
    ("README.md", '-e ".[test'): "sets up an environment and runs these tests: .ci/run does",
    ("README.md", "pip install spacy-distil "): "installs packages: .ci/run does, from here",
    ("README.md", "--vars.dataset ewt"): "downloads corpora and takes two hours",
    ("README.md", "benchmarks.teaching.rows"): "needs corpora and takes half an hour",
    ("README.md", "spacy distil benchmark"): (
        "starts a process for each figure: tests/cli/test_benchmark.py runs the command"
    ),
}
# Commands that need a package which is not everywhere where tests run.
NEEDS = {"distil convert": "spacy_transformers"}


# The blocks


FENCED = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    section: number of the heading that it stands under; 0 for all of a page whose blocks belong
        together.
    line: of the page, that its code begins after.
    """

    page: str
    section: int
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def not_run(self) -> tuple[str, str] | None:
        """Its key in NOT_RUN."""
        keys = (key for key in NOT_RUN if key[0] == self.page and key[1] in self.code)
        return next(keys, None)


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf8")
    blocks = []
    for found in FENCED.finditer(text):
        before = text[: found.start()]
        section = len(re.findall(r"^## ", before, re.MULTILINE)) if page == "README.md" else 0
        blocks.append(Block(page, section, before.count("\n") + 1, found[1], found[2]))
    return blocks


def shorten(text: str) -> str:
    """A command or a config with two steps of training, and an evaluation after them."""
    names = "max_steps|total_steps|eval_frequency"
    return re.sub(rf"\b({names})( = | )(\d+|null)\b", r"\1\g<2>2", text)


def shorten_configs() -> None:
    """Those of the working directory."""
    for path in Path().glob("*.cfg"):
        text = shorten(path.read_text(encoding="utf8"))
        if "[teacher]" in text:
            text = re.sub(r"^batch_size = \d+$", "batch_size = 4", text, flags=re.MULTILINE)
        path.write_text(text, encoding="utf8")
        config = load_config(path, interpolate=False)
        overrides = {f"paths.{name}": "" for name in config.get("paths", {})}
        training = load_config(path, overrides, interpolate=True)["training"]
        assert training["max_steps"] == 2


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    code = "\n" * block.line + block.code  # so that tracebacks have the page's lines
    exec(compile(code, ROOT / block.page, "exec"), namespace)


def run_commands(block: Block, namespace: dict[str, Any]) -> None:
    """Lines `python -m spacy ...`, in this process: a new one takes seconds."""
    for line in block.code.replace("\\\n", "").splitlines():
        words = without_launcher(shlex.split(shorten(line), comments=True))
        if not words:
            continue
        assert words[:3] == ["python", "-m", "spacy"], f"{block.place}: {line}"
        package = NEEDS.get(" ".join(words[3:5]))
        if package is not None and importlib.util.find_spec(package) is None:
            continue
        result = CliRunner().invoke(app, words[3:], env={"COLUMNS": "200"}, catch_exceptions=False)
        assert result.exit_code == 0, f"{block.place}: {line}\n{result.output}"
        namespace["output"] = result.output
        shorten_configs()


def without_launcher(words: list[str]) -> list[str]:
    """The command that a launcher is to start, with disks of other machines in this directory."""
    words = [re.sub(r"^/(shared|local)/", r"\1/", word) for word in words]
    parsers = {"torchrun": torchrun_parser, "accelerate launch": launch_command_parser}
    words = words[1:] if words[:1] == ["srun"] else words
    for launcher, parser in parsers.items():
        n = len(launcher.split())
        if words[:n] == launcher.split():
            options = parser().parse_args(words[n:])
            assert options.module, words
            return ["python", "-m", options.training_script, *options.training_script_args]
    return words


def check_output(block: Block, namespace: dict[str, Any]) -> None:
    """What the command before prints, but for the numbers."""

    def labels(text: str) -> list[str]:
        first = (re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines())
        return [re.sub(r"[\d,.*]+", "", label).strip() for label in first]

    missing = [label for label in labels(block.code) if label not in labels(namespace["output"])]
    assert not missing, f"{block.place}: {missing}"


def read_toml(block: Block, namespace: dict[str, Any]) -> None:
    """The entry points of a package, which are named as the functions that are registered here."""
    if sys.version_info < (3, 11):
        return
    import tomllib

    ((group, found),) = tomllib.loads(block.code)["project"]["entry-points"].items()
    assert group == distil_objectives.entry_point_namespace
    for name, place in found.items():
        assert namespace[place.split(":")[1]] is distil_objectives.get(name)


def run_config(block: Block, namespace: dict[str, Any]) -> None:
    """Parts of a config, see below."""
    run = run_distil_config if block.page == DISTILLATION else run_train_config
    run(block)


def run_distil_config(block: Block) -> None:
    """In place of the same parts of what `init-config encoder` writes: a student learns by it."""
    config = distil_config(teacher="bert-base-uncased", text="texts").merge(parse_part(block.code))
    distil_encoder(config, f"from-line-{block.line}", gpu_id=-1)


def distil_config(*, teacher: str | Path, text: str | Path) -> Config:
    """What `init-config encoder` writes, for a run of a second."""
    quick = {
        "teacher": {"name": str(teacher)},
        "corpus": {"train": str(text), "block_size": 32, "dev_fraction": 0.1},
        "training": {"epochs": None, "max_steps": 4, "batch_size": 4, "tensorboard": False},
    }
    return Config().from_str(encoder_config(), interpolate=False).merge(quick)


def run_train_config(block: Block) -> None:
    """In place of the same parts of what `init-config train` writes: spaCy makes
    a pipeline of it, and what is not frozen learns.
    """
    part = parse_part(block.code)
    whole = training_config(pipes=("tagger", "ner", "textcat"), encoder="distilbert-base-uncased")
    base = Config().from_str(whole, interpolate=False)
    assert part.keys() <= base.keys(), block.place
    for name, settings in part.get("components", {}).items():
        known = base["components"].setdefault(name, {"factory": settings.get("factory", name)})
        if "source" in settings or settings.get("factory", known["factory"]) != known["factory"]:
            base["components"][name] = {}  # what is there belongs to another factory
    config = Config(base).merge(part)
    pipeline = config["nlp"]["pipeline"]
    if "pipeline" not in part.get("nlp", {}):
        pipeline = [*dict.fromkeys([*pipeline, *part.get("components", {})])]
    config["nlp"]["pipeline"] = pipeline
    config["components"] = {name: config["components"][name] for name in pipeline}
    config["paths"].update(train="dev.spacy", dev="dev.spacy")
    nlp = init_nlp(config)
    training = registry.resolve(config.interpolate()["training"], schema=ConfigSchemaTraining)
    (batch, *_) = training["batcher"](list(Corpus("dev.spacy")(nlp)))
    frozen, annotating = training["frozen_components"], training["annotating_components"]
    losses = nlp.update(batch, sgd=training["optimizer"], exclude=frozen, annotates=annotating)
    assert losses.keys() >= set(pipeline) - set(frozen), block.place


def parse_part(text: str) -> Config:
    """A part of a config, whose sections may lack the ones that they belong to."""
    there = re.findall(r"^\[(.+)\]$", text, re.MULTILINE)
    outer = {
        ".".join(parts[:n]): None
        for parts in (name.split(".") for name in there)
        for n in range(1, len(parts))
    }
    missing = "".join(f"[{name}]\n" for name in outer if name not in there)
    return Config().from_str(missing + text, interpolate=False)


RUNNERS: dict[str, Callable[[Block, dict[str, Any]], None]] = {
    "python": run_python,
    "bash": run_commands,
    "ini": run_config,
    "text": check_output,
    "toml": read_toml,
}


# What readers have


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders, corpora and trained pipelines, by the names that the pages give them."""
    path = tmp_path_factory.mktemp("docs")
    write_encoder(path / "distilbert-base-uncased", "distilbert", positions=512)
    write_bert(path / "bert-base-uncased", transformers.BertForMaskedLM)
    minilm = path / "sentence-transformers" / "all-MiniLM-L6-v2"
    write_bert(minilm, transformers.BertModel, heads=12, width=48, neurons=1536)
    nlp: Any = spacy.blank("en")
    for name, n in (("train", 120), ("dev", 8), ("test", 8)):
        docs = [each.reference for each in make_annotated(nlp, n, start=1000 * n)]
        if name == "train":  # and one that is longer than a batch
            docs.append(Doc(nlp.vocab, words=[token.text for doc in docs for token in doc] * 2))
            docs[-1].cats = docs[0].cats
            assert len(docs[-1]) > 1200
        DocBin(docs=docs, store_user_data=True).to_disk(path / f"{name}.spacy")
    texts = [each.text for each in docs]
    srsly.write_jsonl(path / "texts.jsonl", [{"text": text} for text in texts])
    (path / "texts").mkdir()
    (path / "texts" / "more.txt").write_text("\n\n".join(texts * 20), encoding="utf8")
    (path / "training").mkdir()
    learn(make_nlp(path / "distilbert-base-uncased", ["tagger", "ner", "textcat"])).to_disk(
        path / "training" / "model-best"
    )
    shutil.copytree(path / "training" / "model-best", path / "my_teacher")
    if importlib.util.find_spec("spacy_transformers") is not None:
        make_trf(path / "distilbert-base-uncased").to_disk(path / "my-trf-pipeline")
    return path


def write_bert(
    directory: Path, kind: Any, *, heads: int = 4, width: int = 32, neurons: int = 64
) -> None:
    """kind: of transformers, with a masked-LM head or without."""
    tokenizer = build_tokenizer("bert")
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=6,
        num_attention_heads=heads,
        intermediate_size=neurons,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(directory)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special_pieces("bert")
    ).save_pretrained(directory)


def make_trf(encoder: Path) -> Any:
    nlp: Any = spacy.blank("en")
    tokenizer = {"use_fast": True, "model_input_names": ["input_ids", "attention_mask"]}
    model = {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": str(encoder),
        "get_spans": {"@span_getters": "spacy-transformers.doc_spans.v1"},
        "tokenizer_config": tokenizer,
    }
    nlp.add_pipe("transformer", config={"model": model})
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "pooling": {"@layers": "reduce_mean.v1"},
    }
    add_heads(nlp, ["tagger"], listener)
    nlp.initialize(lambda: make_examples(nlp))
    return learn(nlp)


def learn(nlp: Any) -> Any:
    """Enough for heads that say different things of different tokens."""
    examples, optimizer = make_examples(nlp), adam(5e-3)
    for _ in range(25):
        nlp.update(examples, sgd=optimizer)
    return nlp


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(
    page: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [block for block in blocks_of(page) if block.not_run is None]
    if not blocks:
        return
    for section, group in groupby(blocks, key=lambda block: block.section):
        directory = shutil.copytree(files, tmp_path / f"section-{section}")
        monkeypatch.chdir(directory)
        namespace: dict[str, Any] = {"__name__": "page"}
        if page == "README.md":  # which says: your Example objects
            namespace["examples"] = make_examples(spacy.blank("en"))
        for block in group:
            known = block.language in RUNNERS
            assert known, f"{block.place}: name it in NOT_RUN, or its language in RUNNERS"
            RUNNERS[block.language](block, namespace)
        assert not namespace.get("n_left_out")  # of docs/training.md
    if page == DISTILLATION:
        named = {name for row in table_after("The output is", page) for name in in_backticks(row)}
        found = {path.name + "/" * path.is_dir() for path in Path("student").iterdir()}
        found.discard("special_tokens_map.json")  # of some versions of transformers
        assert found == named - {"checkpoints/"}


def test_what_is_not_run_is_there() -> None:
    found = [block.not_run for page in PAGES for block in blocks_of(page) if block.not_run]
    assert sorted(found) == sorted(NOT_RUN)


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, *BENCHMARKS):
        path = ROOT / page
        prose = re.sub(FENCED, "", path.read_text(encoding="utf8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"https?://", target):
                continue
            file, _, heading = target.partition("#")
            linked = (path.parent / file).resolve() if file else path
            assert linked.exists(), f"{page}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf8"), re.M)
                anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
                assert heading in anchors, f"{page}: {target}"


def test_files_that_benchmarks_name_are_there() -> None:
    """In backticks: code, configs and results, by their paths from here or from the benchmarks."""
    page = ROOT / "benchmarks" / "README.md"
    prose = re.sub(FENCED, "", page.read_text(encoding="utf8"))
    named = set(re.findall(r"`([\w./-]+\.(?:cfg|json|md|py))`", prose))
    assert {"encode.py", "configs/train.cfg", "ewt/int8.md"} <= named
    folders = (ROOT, page.parent, page.parent / "teaching")
    assert not {name for name in named if not any((each / name).exists() for each in folders)}


# Tables of settings


def table_after(text: str, page: str = "docs/component.md") -> list[list[str]]:
    """The cells of the first table behind a text, without its header."""
    _, found, rest = (ROOT / page).read_text(encoding="utf8").partition(text)
    assert found, text
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table is not None, text
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


def in_backticks(cells: Collection[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", " ".join(cells))


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters}


def factory_defaults(name: str) -> dict[str, Any]:
    nlp: Any = spacy.blank("en")  # knows the factories
    config = nlp.get_factory_meta(name).default_config or {}
    return {key: value for key, value in config.items() if key != "model"}


def section_defaults(section: type[Section]) -> dict[str, Any]:
    return {
        name: inspect.Parameter.empty
        if field.is_required()
        else field.get_default(call_default_factory=True)
        for name, field in section.model_fields.items()
    }


COMPONENT = "docs/component.md"


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        (COMPONENT, "of `spacy-distil.DistilTransformer.v1`", partial(defaults, DistilTransformer)),
        (COMPONENT, "of `spacy-distil.Listener.v1`", partial(defaults, Listener)),
        (
            COMPONENT,
            "of the factory `distil_transformer`",
            partial(factory_defaults, "distil_transformer"),
        ),
        (COMPONENT, "of the factory `distil_ner`", partial(factory_defaults, "distil_ner")),
        (DISTILLATION, "\n`[teacher]`:", partial(section_defaults, TeacherSettings)),
        (DISTILLATION, "\n`[student]`:", partial(section_defaults, StudentSettings)),
        (DISTILLATION, "\n`[corpus]`:", partial(section_defaults, CorpusSettings)),
        (DISTILLATION, "\n`[stages.NAME]`:", partial(section_defaults, StageSettings)),
        (DISTILLATION, "\n`[training]`:", partial(section_defaults, TrainingSettings)),
    ],
)
def test_settings_and_defaults_are_those_of_the_code(
    page: str, text: str, expected: Callable[[], dict[str, Any]]
) -> None:
    documented = {}
    for name, default, explanation in table_after(text, page):
        value = json.loads(default.strip("`")) if default else inspect.Parameter.empty
        documented[name.strip("`")] = value
        assert explanation
    assert documented == expected()


def test_what_the_table_says_of_batches(bert_dir: Path, onnx_pipeline: Path) -> None:
    from spacy_distil.engines import onnx
    from spacy_distil.engines import torch as engine

    (row,) = (row for row in table_after("Those of `spacy-distil.D") if "max_batch" in row[0])
    sizes = (engine.CPU_BATCH_PIECES, engine.GPU_BATCH_PIECES, onnx.BATCH_PIECES)
    assert [int(each.replace(",", "")) for each in re.findall(r"\d[\d,]+", row[2])] == [*sizes]


# Further tables and figures of docs/distillation.md


def test_objectives_are_those_of_the_code() -> None:
    made = {
        name: make
        for name, make in distil_objectives.get_all().items()
        if name.startswith("spacy-distil.")
    }
    words = {
        "teacher": "teacher",
        "teacher_head": "head of the teacher",
        "student_head": "head of the student",
        "masking": "masked pieces",
    }
    documented: dict[str, set[str]] = {}
    for name, _, needs, _ in table_after("## Objectives", DISTILLATION):
        documented[name.strip("`")] = set(needs.split(", "))
    assert documented == {
        name: {word for key, word in words.items() if getattr(make().needs, key)}
        for name, make in made.items()
    }
    settings: dict[str, dict[str, Any]] = {}
    for name, setting, default, explanation in table_after("What they cost", DISTILLATION):
        assert explanation
        found = settings.setdefault(f"spacy-distil.{name}.v1", {})
        found[setting.strip("`")] = json.loads(default.strip("`"))
    assert settings == {name: defaults(make) for name, make in made.items()}


def test_layers_and_families_are_those_of_the_code() -> None:
    chosen = {}
    for layers, numbers in table_after("**Layers.**", DISTILLATION):
        value = json.loads(layers.strip("`"))
        chosen[layers] = [int(number) for number in numbers.split(", ")]
        n_layers = 4 if isinstance(value, str) else None
        assert choose_layers(value, n_layers, available=12) == chosen[layers]
    assert len(chosen) == 5
    can, cannot = (in_backticks(row[:1]) for row in table_after("Numbers compare", DISTILLATION))
    assert set(can) == set(CUTTABLE)
    assert {*can, *cannot} == set(FAMILIES)


def test_what_may_change_on_resume_is_what_the_code_lets_change() -> None:
    text = (ROOT / DISTILLATION).read_text(encoding="utf8")
    found = re.search(r"resumed may have other values of(.*?)\. Other", text, re.DOTALL)
    assert found is not None
    names = [name if "." in name else f"training.{name}" for name in in_backticks(found.groups())]
    assert set(names) == FREE_ON_RESUME


def test_operations_are_what_the_page_says() -> None:
    teacher, student = (transformers.BertConfig(num_hidden_layers=n) for n in (12, 6))
    teaching = encoder_flops(teacher, 512)
    both = teaching + encoder_flops(student, 512, backward=True)
    heads = [0.15 * head_flops(student, backward=backward) for backward in (False, True)]
    text = " ".join((ROOT / DISTILLATION).read_text(encoding="utf8").split())
    assert f"takes {both / 1e6:.0f} MFLOP a piece" in text
    assert f"forward pass is {teaching / both:.0%}".replace("%", " %") in text
    assert f"Soft targets add {sum(heads) / 1e6:.0f}, masked LM {heads[1] / 1e6:.0f};" in text


def test_the_default_is_distilberts_sum() -> None:
    """Soft targets, masked LM and cosine, with the weights that the page tells."""
    blocks = distil_config(teacher="", text="")["objectives"]
    active = {b["@distil_objectives"]: b["weight"] for b in blocks.values() if b["weight"]}
    kinds = (SoftTargets, MaskedLM, Cosine)
    assert active == {
        f"spacy-distil.{kind.__name__}.v1": weight
        for kind, weight in zip(kinds, (5, 2, 1), strict=True)
    }


# Errors


@dataclass(frozen=True)
class Setup:
    """What errors are made from. path: an empty directory."""

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


# By how a row begins, what raises its error.
REFUSED: dict[str, Callable[[Setup], Any]] = {
    "it has a decoder": lambda s: refused(
        s, small("t5", d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    ),
    "its pieces know nothing": lambda s: refused(
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
    "which is frozen and set no doc.tensor": without_annotating,
    "but would read the vectors of": two_encoders,
    "distil_transformer trains with AdamW.": with_radam,
    "This encoder cannot be trained": train_onnx,
    "model.safetensors is missing": load_onnx_as_torch,
}


@pytest.mark.parametrize(
    ("heading", "column", "cases"),
    [("## Which encoders", 1, REFUSED), ("## What errors say", 0, ERRORS)],
    ids=["refused", "errors"],
)
def test_errors_say_what_the_table_says(
    heading: str,
    column: int,
    cases: dict[str, Callable[[Setup], Any]],
    bert_dir: Path,
    onnx_pipeline: Path,
    tmp_path: Path,
) -> None:
    rows = table_after(heading)
    for message, case in pair(rows, column, cases):
        directory = tmp_path / str(len([*tmp_path.iterdir()]))
        directory.mkdir()
        with pytest.raises(DistilError, match=message):
            case(Setup(bert_dir, onnx_pipeline, directory))


def pair(
    rows: list[list[str]], column: int, cases: dict[str, Callable[[Any], Any]]
) -> list[tuple[str, Callable[[Any], Any]]]:
    """Each row's message, as a regular expression, and what raises it. cases: by its beginning."""
    messages = [row[column].removeprefix("`").removesuffix("`") for row in rows]
    assert len(messages) == len(cases)
    pairs = []
    for message in messages:
        (case,) = (cases[each] for each in cases if message.startswith(each))
        pairs.append(("(?s)" + ".*".join(map(re.escape, message.split("…"))), case))
    return pairs


@dataclass(frozen=True)
class Distillation:
    """What errors of a distillation are made from.

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
        config = distil_config(teacher=self.teacher, text=self.text)
        for name, section in changes.items():
            config[name] = {**config[name], **section}
        distil_encoder(config, output or self.path / "out", gpu_id=-1)

    def student(self, **settings: Any) -> None:
        self.distil(student=settings)

    def objective(self, name: str, **settings: Any) -> None:
        """With an objective switched on."""
        block = distil_config(teacher="", text="")["objectives"][name]
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
    plan = Plan("corpus.train", [text], None, "fingerprint")
    build(plan, setup.path / "cache", tokenizer=tokenizer, block_size=16)


def damaged_cache(setup: Distillation) -> None:
    cache = shutil.copytree(setup.finished / "cache", setup.path / "cache")
    for shard in cache.rglob("*.npy"):
        shard.write_bytes(b"")
    setup.distil(corpus={"cache": str(cache)})


def launched(setup: Distillation) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        distil_encoder(distil_config(teacher="", text=""), setup.path / "out", gpu_id=0)


def no_compiler(setup: Distillation) -> None:
    from torch._inductor import config

    with pytest.MonkeyPatch.context() as patch, config.patch({"cpp.cxx": ("/no/compiler",)}):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(setup.path / "inductor"))
        setup.distil(training={"compile": True})


def full_disk(setup: Distillation) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"weights": torch.zeros(100_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        Checkpoints(setup.path, keep=1).save(1, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def damaged_checkpoint(setup: Distillation) -> None:
    (setup.path / "step-00000001.pt").write_bytes(b"cut short")
    Checkpoints(setup.path, keep=1).load(1, torch.device("cpu"))


def resume_another(setup: Distillation) -> None:
    config = distil_config(teacher=setup.teacher, text=setup.text)
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
    "the checkpoint of step": full_disk,
    "the checkpoint …": damaged_checkpoint,
    "is not empty.": lambda s: s.distil(s.finished),
    "cannot be resumed": resume_another,
    "holds files, but": in_anothers_directory,
}


def test_errors_of_distillation_say_what_the_table_says(
    distillation: Distillation, tmp_path: Path
) -> None:
    rows = table_after("## When something goes wrong", DISTILLATION)
    for number, (message, case) in enumerate(pair(rows, 0, WRONG)):
        directory = tmp_path / str(number)
        directory.mkdir()
        with pytest.raises(DistilError, match=message):
            case(replace(distillation, path=directory))


# What the pages say of spaCy


def test_a_doc_without_its_tensor_has_no_vector(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    nlp.add_pipe("doc_cleaner", config={"attrs": {"tensor": None}})
    doc = nlp("Ann visited Rome.")
    for name in ("vector", "has_vector"):
        with pytest.raises(AttributeError):
            getattr(doc, name)


def test_what_the_quickstart_s_batcher_leaves_out() -> None:
    """Documents of 2,000 tokens, and batches that come to just as many."""
    make = registry.batchers.get("spacy.batch_by_padded.v1")
    batcher = make(size=2000, buffer=256, discard_oversize=True, get_length=None)
    assert sum(map(len, batcher([range(1999)]))) == 1
    assert sum(map(len, batcher([range(2000)]))) == 0
    assert sum(map(len, batcher([range(100)] * 19))) == 19
    assert sum(map(len, batcher([range(100)] * 20))) == 0
    # So it is written.
    template = Path(inspect.getfile(spacy)).parent / "cli/templates/quickstart_training.jinja"
    written = template.read_text(encoding="utf8")
    assert 'batch_by_padded.v1"\ndiscard_oversize = true\nsize = 2000\n' in written
