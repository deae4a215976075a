"""Every code block of the pages runs.

The blocks of a page (of the README and the recipes: of a section) run one after the other in a
directory of their own, which holds the files that a reader would have. Names of encoders on the hub
are directories with small random ones there. Trainings take two steps (`shorten`). A launcher only
reads its options.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pytest
import spacy
from accelerate.commands.launch import launch_command_parser
from spacy.cli._util import app
from spacy.schemas import ConfigSchemaTraining
from spacy.training import Corpus
from spacy.training.initialize import init_nlp
from spacy.util import load_config
from thinc.api import Config
from torch.distributed.run import get_args_parser as torchrun_parser
from typer.testing import CliRunner

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.cli.configs import training_config
from spacy_distil.distillation import distil_encoder, distil_pipeline
from spacy_distil.distillation.encoder.objectives import distil_objectives
from tests.docs.configs import encoder_config, pipeline_config
from tests.docs.pages import (
    ENCODER,
    PAGES,
    PIPELINE,
    ROOT,
    Block,
    blocks_of,
    in_backticks,
    table_after,
)
from tests.util import make_examples, registry

# Blocks that do not run here, by page and a part of the block, and why.
NOT_RUN = {
    ("README.md", '-e ".[demo]"'): "sets up an environment and runs the project: .ci/run does",
    ("README.md", '-e ".[test'): "sets up an environment and runs these tests: .ci/run does",
    ("README.md", "pip install spacy-distil "): "installs packages: .ci/run does, from here",
    ("CONTRIBUTING.md", '-e ".[test'): "sets up an environment: .ci/run does",
    ("CONTRIBUTING.md", "pytest"): "runs these tests",
    ("docs/reliability.md", "tests.campaigns"): "tests/campaigns has a short form of each",
    ("docs/project.md", "project run all\n"): "takes 10 minutes: .ci/run runs the project",
    ("docs/results.md", "--vars.dataset ewt"): "downloads corpora and takes two hours",
    ("docs/results.md", "--vars.dataset custom"): "needs a corpus and takes an hour",
    ("docs/results.md", "benchmarks.stages"): "needs trained pipelines",
    ("docs/results.md", "benchmarks.any_model"): "needs published models and takes an hour",
    (
        "docs/results.md",
        "benchmarks.pipeline_distillation.rows",
    ): "needs corpora and takes half an hour",
    ("docs/recipes.md", "gliner_spacy"): "needs gliner-spacy: tests/docs/test_teachers.py runs it",
    ("docs/recipes.md", "llm"): "needs spacy-llm: tests/docs/test_teachers.py runs it",
    ("docs/encoder-distillation.md", "vocabulary.size"): "distillation/encoder/test_run.py does",
    ("docs/encoder-distillation.md", "--prune-vocab"): "tests/cli/test_student.py runs the command",
    ("docs/pipeline-distillation.md", '"original"'): "distillation/pipeline/test_corpus.py does",
    ("docs/pipeline-distillation.md", "texts/de.txt"): "distillation/pipeline/test_corpus.py does",
    ("docs/pipeline-distillation.md", "my_zero_shot_component"): "tests/docs/test_teachers.py does",
    ("docs/recipes.md", "spacy distil benchmark"): (
        "starts a process for each figure: tests/cli/test_benchmark.py runs the command"
    ),
}
# Commands that need a package which is not installed everywhere.
NEEDS = {"distil convert": "spacy_transformers"}


def key_in_not_run(block: Block) -> tuple[str, str] | None:
    keys = (key for key in NOT_RUN if key[0] == block.page and key[1] in block.code)
    return next(keys, None)


def runnable_blocks(page: str) -> list[Block]:
    return [block for block in blocks_of(page) if key_in_not_run(block) is None]


def shorten(text: str) -> str:
    """Set a command or a config to two steps of training and an evaluation after them."""
    if "distil student my_teacher" in text:  # which is smaller than a reader's
        text = re.sub(r"--ffn \d+", "--ffn 20", text)
    text = re.sub(r"--embedding-size \d+", "--embedding-size 16", text)
    names = "max_steps|total_steps|eval_frequency"
    return re.sub(rf"\b({names})( = | )(\d+|null)\b", r"\1\g<2>2", text)


def shorten_configs() -> None:
    """Shorten the configs in the working directory."""
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
    code = code.replace("range(3333)", "range(40)")  # fewer texts to search in
    exec(compile(code, ROOT / block.page, "exec"), namespace)


def run_commands(block: Block, namespace: dict[str, Any]) -> None:
    """Run lines `python -m spacy ...` in this process: a new one takes seconds."""
    for line in block.code.replace("\\\n", "").splitlines():
        words = without_launcher(shlex.split(shorten(line), comments=True))
        if not words:
            continue
        if words[3:5] == ["distil", "fit"]:  # fewer students: each is built and timed
            words += ["--fit.ffn", "[1.0]", "--fit.width", "[1.0]", "--fit.cnn", "[]"]
        assert words[:3] == ["python", "-m", "spacy"], f"{block.place}: {line}"
        package = NEEDS.get(" ".join(words[3:5]))
        if package is not None and importlib.util.find_spec(package) is None:
            shutil.copytree("my_teacher", words[6])  # stands in for the result
            continue
        result = CliRunner().invoke(app, words[3:], env={"COLUMNS": "200"}, catch_exceptions=False)
        assert result.exit_code == 0, f"{block.place}: {line}\n{result.output}"
        namespace["output"] = result.output
        shorten_configs()


def without_launcher(words: list[str]) -> list[str]:
    """Return the command that a launcher starts, with /shared and /local as directories here."""
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
    """Compare with the output of the command before, numbers aside."""

    def labels(text: str) -> list[str]:
        first = (re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines())
        return [re.sub(r"[\d,.*]+", "", label).strip() for label in first]

    missing = [label for label in labels(block.code) if label not in labels(namespace["output"])]
    assert not missing, f"{block.place}: {missing}"


def read_toml(block: Block, namespace: dict[str, Any]) -> None:
    """Check entry points: they name the functions that the page registers."""
    if sys.version_info < (3, 11):
        return
    import tomllib

    ((group, places),) = tomllib.loads(block.code)["project"]["entry-points"].items()
    assert group == distil_objectives.entry_point_namespace
    for name, place in places.items():
        assert namespace[place.split(":")[1]] is distil_objectives.get(name)


def run_config(block: Block, namespace: dict[str, Any]) -> None:
    """Run a part of a config, each page its own kind."""
    runners = {ENCODER: run_encoder_config, PIPELINE: run_pipeline_config}
    runners.get(block.page, run_train_config)(block)


def run_encoder_config(block: Block) -> None:
    """Distil an encoder with the block in place of the same parts of `init-config encoder`."""
    config = encoder_config(teacher="bert-base-uncased", text="texts").merge(parse_part(block.code))
    languages = config["corpus"].get("languages", {})
    if languages:  # instead of the text
        del config["corpus"]["train"]
    for path in map(Path, chain.from_iterable(languages.values())):
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        text = Path("texts.jsonl" if path.suffix == ".jsonl" else "texts/more.txt")
        shutil.copy(text, path)
    distil_encoder(config, f"from-line-{block.line}", gpu_id=-1)


def run_pipeline_config(block: Block) -> None:
    """Distil a pipeline with the block in place of the same parts of `init-config pipeline`."""
    config = pipeline_config(train="dev.spacy", dev="dev.spacy", text="texts.jsonl")
    config = merge_part(config, parse_part(block.code))
    config["training"]["max_steps"] = 5  # a stage of the page has a fifth of the steps
    distil_pipeline("my_teacher", config, f"from-line-{block.line}")


def run_train_config(block: Block) -> None:
    """Train with the block in place of the same parts of `init-config train`: spaCy makes a
    pipeline of it, and each pipe that is not frozen learns.
    """
    part = parse_part(block.code)
    whole = training_config(pipes=("tagger", "ner", "textcat"), encoder="distilbert-base-uncased")
    base = Config().from_str(whole, interpolate=False)
    config = merge_part(base, part)
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


def merge_part(config: Config, part: Config) -> Config:
    """Put a part in place of the same parts of a config."""
    assert part.keys() <= config.keys()
    components = config["components"]
    for name, settings in part.get("components", {}).items():
        known = components.setdefault(name, {"factory": settings.get("factory", name)})
        if "source" in settings or settings.get("factory", known["factory"]) != known["factory"]:
            components[name] = {}  # its settings belong to another factory
    return Config(config).merge(part)


def parse_part(text: str) -> Config:
    """Parse a part of a config, which may lack the outer sections of its sections."""
    lines: list[str] = []
    seen: set[str] = set()
    for line in text.splitlines():
        if header := re.fullmatch(r"\[(.+)\]", line):
            parts = header[1].split(".")
            outer = [".".join(parts[:n]) for n in range(1, len(parts))]
            lines += [f"[{name}]" for name in outer if name not in seen]
            seen.update(outer, header.groups())
        lines.append(line)
    return Config().from_str("\n".join(lines), interpolate=False)


RUNNERS: dict[str, Callable[[Block, dict[str, Any]], None]] = {
    "python": run_python,
    "bash": run_commands,
    "ini": run_config,
    "text": check_output,
    "toml": read_toml,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable_blocks(page)])
def test_the_blocks_of_a_page_run(
    page: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for section, group in groupby(runnable_blocks(page), key=lambda block: block.section):
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
    if page in (ENCODER, PIPELINE):
        named = {
            name for row in table_after("The output is", page) for name in in_backticks(row[:1])
        }
        written = {path.name + "/" * path.is_dir() for path in Path("student").iterdir()}
        written.discard("special_tokens_map.json")  # of some versions of transformers
        assert written == named - {"checkpoints/"}


def test_what_is_not_run_is_there() -> None:
    keys = [key for page in PAGES for block in blocks_of(page) if (key := key_in_not_run(block))]
    assert sorted(set(keys)) == sorted(NOT_RUN)
