"""The pages of docs/ and the README: every code block is run, and tables say what the code does.
They, and those of benchmarks/, name files that exist.

The blocks of a page, in the README those of a section, run one after the other in a directory of
their own, which has what a reader would have. Names of encoders on the hub are directories with
small random ones there, which go before the hub, and trainings take two steps (`shorten`).
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import spacy
import srsly
import torch
import transformers
from spacy.cli._util import app
from spacy.schemas import ConfigSchemaTraining
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus
from spacy.training.initialize import init_nlp
from spacy.util import load_config
from thinc.api import Config
from typer.testing import CliRunner

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.architectures import DistilTransformer
from spacy_distil.engines.pretrained import load_encoder
from spacy_distil.errors import DistilError
from spacy_distil.export.families import read_weights
from spacy_distil.listener import Listener
from spacy_distil.training_template import training_config
from tests.life.corpus import make_annotated
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
BENCHMARKS = ("benchmarks/README.md", "benchmarks/peers.md")

# Blocks that are not run here, by their page and a part of them, and why.
NOT_RUN = {
    ("README.md", '-e ".[demo]"'): "sets up an environment and runs the project: .ci/run does",
    ("README.md", '-e ".[test'): "sets up an environment and runs these tests: .ci/run does",
    ("README.md", "pip install spacy-distil "): "installs packages: .ci/run does, from here",
    ("README.md", "--vars.dataset ewt"): "downloads corpora and takes two hours",
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
        path.write_text(shorten(path.read_text(encoding="utf8")), encoding="utf8")
        config = load_config(path, interpolate=False)
        overrides = {f"paths.{name}": "" for name in config.get("paths", {})}
        assert load_config(path, overrides, interpolate=True)["training"]["max_steps"] == 2


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    code = "\n" * block.line + block.code  # so that tracebacks have the page's lines
    exec(compile(code, ROOT / block.page, "exec"), namespace)


def run_commands(block: Block, namespace: dict[str, Any]) -> None:
    """Lines `python -m spacy ...`, in this process: a new one takes seconds."""
    for line in block.code.replace("\\\n", "").splitlines():
        words = shlex.split(shorten(line), comments=True)
        assert words[:3] == ["python", "-m", "spacy"], f"{block.place}: {line}"
        package = NEEDS.get(" ".join(words[3:5]))
        if package is not None and importlib.util.find_spec(package) is None:
            continue
        result = CliRunner().invoke(app, words[3:], env={"COLUMNS": "200"}, catch_exceptions=False)
        assert result.exit_code == 0, f"{block.place}: {line}\n{result.output}"
        shorten_configs()


def run_config(block: Block, namespace: dict[str, Any]) -> None:
    """Parts of a config, in place of the same parts of what `init-config train` writes: spaCy makes
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
}


# What readers have


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders, corpora and trained pipelines, by the names that the pages give them."""
    path = tmp_path_factory.mktemp("docs")
    write_encoder(path / "distilbert-base-uncased", "distilbert", positions=512)
    write_masked_lm(path / "bert-base-uncased")
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


def write_masked_lm(directory: Path) -> None:
    tokenizer = build_tokenizer("bert")
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForMaskedLM(config).save_pretrained(directory)
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
    assert {"encode.py", "configs/transformer.cfg", "ewt/int8.md"} <= named
    folders = (ROOT, page.parent, page.parent / "teaching")
    assert not {name for name in named if not any((each / name).exists() for each in folders)}


# Tables of docs/component.md


def table_after(text: str) -> list[list[str]]:
    """The cells of the first table behind a text, without its header."""
    _, found, rest = (ROOT / "docs" / "component.md").read_text(encoding="utf8").partition(text)
    assert found, text
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table is not None, text
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters}


def factory_defaults(name: str) -> dict[str, Any]:
    nlp: Any = spacy.blank("en")  # knows the factories
    config = nlp.get_factory_meta(name).default_config or {}
    return {key: value for key, value in config.items() if key != "model"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Those of `spacy-distil.DistilTransformer.v1`", partial(defaults, DistilTransformer)),
        ("Those of `spacy-distil.Listener.v1`", partial(defaults, Listener)),
        (
            "That of the factory `distil_transformer`",
            partial(factory_defaults, "distil_transformer"),
        ),
        ("That of the factory `distil_ner`", partial(factory_defaults, "distil_ner")),
    ],
)
def test_settings_and_defaults_are_those_of_the_code(
    text: str, expected: Callable[[], dict[str, Any]]
) -> None:
    documented = {}
    for name, default, explanation in table_after(text):
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
    messages = [row[column].removeprefix("`").removesuffix("`") for row in table_after(heading)]
    assert len(messages) == len(cases)
    for i, message in enumerate(messages):
        (case,) = (cases[each] for each in cases if message.startswith(each))
        expected = ".*".join(map(re.escape, message.split("…")))
        (tmp_path / str(i)).mkdir()
        with pytest.raises(DistilError, match=f"(?s){expected}"):
            case(Setup(bert_dir, onnx_pipeline, tmp_path / str(i)))


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
