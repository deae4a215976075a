"""`spacy distil pipeline` and `spacy distil init-config pipeline` as users call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.cli._util import app
from spacy.language import Language
from spacy.lookups import Lookups
from typer.testing import CliRunner, Result

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.cli.configs import pipeline_config
from tests.cli.test_encoder import distil_without_torch
from tests.distillation.pipeline.util import (
    annotated_examples,
    build_pipeline,
    pipe_config,
    student_config,
    train_pipeline,
    write_corpus,
)

PIPES = ("tagger", "textcat")


def distil(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["distil", *map(str, arguments)])


@pytest.fixture(scope="module")
def teacher(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher")
    train_pipeline(bert_dir, PIPES, steps=5).to_disk(path)
    return path


@pytest.fixture
def config(bert_dir: Path, tmp_path: Path) -> Path:
    nlp: Language = spacy.blank("en")
    write_corpus(tmp_path, nlp)
    settings = student_config(bert_dir, tmp_path, PIPES)
    settings["training"]["score_weights"] = {"tag_acc": 1.0}
    settings.to_disk(tmp_path / "student.cfg")
    return tmp_path / "student.cfg"


def test_help_explains_without_torch() -> None:
    result = distil_without_torch("pipeline", "--help")
    assert result.returncode == 0, result.stderr
    for part in ("--resume", "--gpu-id", "--code", "--paths.text texts/", "init-config pipeline"):
        assert part in result.stdout


def test_init_config_writes_a_config_that_is_whole(tmp_path: Path) -> None:
    assert distil("init-config", "pipeline").stdout == pipeline_config()
    path = tmp_path / "student.cfg"
    assert distil("init-config", "pipeline", path).exit_code == 0
    overrides = {"paths.train": "a", "paths.dev": "b", "paths.text": "c"}
    config = spacy.util.load_config(path, overrides=overrides, interpolate=True)
    assert spacy.util.load_model_from_config(config, auto_fill=True).pipe_names[0] == "transformer"


def test_a_student_is_distilled(teacher: Path, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ["--training.max_steps", "4", "--distillation.pipes.tagger.temperature", "2.0"]
    result = distil("pipeline", teacher, config, "--output", output, *options)
    assert result.exit_code == 0, result.stdout
    assert "LOSS TEXTCAT" in result.stdout
    assert spacy.load(output / "model-best")("Ann ran.")[0].tag_
    saved = spacy.util.load_config(output / "distil.cfg")
    assert saved["distillation"]["pipes"]["tagger"]["temperature"] == 2.0
    # spaCy's own commands take the student's config as it is.
    assert spacy.load(output / "model-best").config["distillation"]

    result = distil("pipeline", teacher, config, "--output", output, *options)
    assert result.exit_code == 1
    assert "--resume" in result.stdout
    result = distil("pipeline", teacher, config, "--output", output, *options, "--resume")
    assert result.exit_code == 0
    assert "Finished already" in result.stdout


def test_a_student_has_the_pipes_of_its_teacher(
    bert_dir: Path, config: Path, tmp_path: Path
) -> None:
    """By `init-config pipeline --teacher`; those without a model are copied."""
    nlp: Any = train_pipeline(bert_dir, ["tagger"], steps=5)
    nlp.rename_pipe("tagger", "tags")
    ruler: Any = nlp.add_pipe("attribute_ruler", name="rules")
    ruler.add([[{}]], {"POS": "X"})
    tables = Lookups()
    tables.add_table("lemma_lookup", {"ran": "run"})
    lemmatizer: Any = nlp.add_pipe("lemmatizer", name="lemmas", config={"mode": "lookup"})
    lemmatizer.initialize(lookups=tables)
    teacher, path, output = tmp_path / "teacher", tmp_path / "new.cfg", tmp_path / "out"
    nlp.to_disk(teacher)
    assert distil("init-config", "pipeline", path, "--teacher", teacher).exit_code == 0
    corpora = {name: tmp_path / f"{name}.spacy" for name in ("train", "dev")}
    paths = [f"--paths.{name}={file}" for name, file in corpora.items()]
    options = ["--distillation.corpus", "null", "--training.max_steps", "4"]
    options += ["--training.eval_frequency", "4"]
    result = distil("pipeline", teacher, path, "--output", output, *paths, *options)
    assert result.exit_code == 0, result.output
    assert "tags starts from the teacher's" in " ".join(result.output.split())
    student = spacy.load(output / "model-best")
    assert student.pipe_names == ["transformer", "tags", "rules", "lemmas"]
    doc = student("Ann ran.")
    assert [token.pos_ for token in doc] == ["X"] * 3
    assert doc[1].lemma_ == "run"
    assert doc[0].tag_


def test_a_student_has_the_shapes_of_its_teacher(
    bert_dir: Path, config: Path, tmp_path: Path
) -> None:
    """By `init-config pipeline --teacher`, so its pipes start from the teacher's weights."""
    nlp: Any = build_pipeline(bert_dir, ["tagger"])
    # As in the config of `spacy init config --pipeline parser,ner`, for a CPU.
    shapes: dict[str, dict[str, Any]] = {
        "parser": {"hidden_width": 128, "maxout_pieces": 3, "use_upper": True},
        "ner": {"hidden_width": 32, "maxout_pieces": 3, "use_upper": True},
    }
    for name, shape in shapes.items():
        settings = pipe_config(name)
        settings["model"] |= {**shape, "extra_state_tokens": name == "ner"}
        nlp.add_pipe(name, config=settings)
    nlp.initialize(lambda: annotated_examples(nlp))
    teacher, path, output = tmp_path / "teacher", tmp_path / "new.cfg", tmp_path / "out"
    nlp.to_disk(teacher)
    result = distil("init-config", "pipeline", path, "--teacher", teacher)
    assert "differs" not in result.output
    written = spacy.util.load_config(path)["components"]
    for name, shape in shapes.items():
        assert {key: written[name]["model"][key] for key in shape} == shape
    corpora = {name: tmp_path / f"{name}.spacy" for name in ("train", "dev")}
    paths = [f"--paths.{name}={file}" for name, file in corpora.items()]
    options = ["--distillation.corpus", "null", "--training.max_steps", "2"]
    result = distil("pipeline", teacher, path, "--output", output, *paths, *options)
    assert result.exit_code == 0, result.output
    for name in shapes:
        assert f"{name} starts from the teacher's" in " ".join(result.output.split())


def test_code_is_imported(teacher: Path, config: Path, tmp_path: Path) -> None:
    code = tmp_path / "functions.py"
    code.write_text(
        "import spacy\n"
        "@spacy.registry.callbacks('described.v1')\n"
        "def make():\n"
        "    def mark(nlp):\n"
        "        nlp.meta['description'] = 'distilled'\n"
        "        return nlp\n"
        "    return mark\n"
    )
    text = config.read_text().replace(
        "[training]\n", '[training]\nbefore_to_disk = {"@callbacks":"described.v1"}\n', 1
    )
    config.write_text(text.replace("before_to_disk = null\n", ""))
    command = ["pipeline", teacher, config, "--output", tmp_path / "out"]
    result = distil(*command, "--code", code, "--training.max_steps", "4")
    assert result.exit_code == 0, result.stdout
    assert spacy.load(tmp_path / "out" / "model-best").meta["description"] == "distilled"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train"], "the development corpus: {file} --paths.dev dev.spacy"),
        (["dev"], "the training corpus: {file} --paths.train train.spacy"),
        (
            [],
            "the training corpus and the development corpus: {file} --paths.train train.spacy "
            "--paths.dev dev.spacy",
        ),
    ],
)
def test_a_missing_path_is_named(
    given: list[str], message: str, teacher: Path, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new.cfg"
    assert distil("init-config", "pipeline", path, "--teacher", teacher).exit_code == 0
    options = [f"--paths.{name}={tmp_path / name}.spacy" for name in given]
    result = distil("pipeline", teacher, path, "--output", tmp_path / "out", *options)
    assert result.exit_code == 1
    file = "give a .spacy file or a directory of them, such as"
    assert f"There is no path to {message.format(file=file)}" in " ".join(result.output.split())
    assert "E913" not in result.output
    # In a config without such a variable, the setting itself is named.
    options = ["--corpora.dev.path", "null", "--distillation.corpus", "null"]
    result = distil("pipeline", teacher, config, "--output", tmp_path / "out", *options)
    assert "such as --corpora.dev.path dev.spacy" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody", "{config}"], "No pipeline 'nobody'"),
        (["{teacher}", "none.cfg"], "init-config pipeline none.cfg"),
        (["{teacher}", "{config}", "--distillation.temperature", "-1"], "temperature = -1"),
        (["{teacher}", "{config}", "--corpora.text.path", "none.txt"], "none.txt"),
    ],
)
def test_errors_are_plain(
    arguments: list[str], message: str, teacher: Path, config: Path, tmp_path: Path
) -> None:
    filled = [each.format(teacher=teacher, config=config) for each in arguments]
    result = distil("pipeline", *filled, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.stdout.split())
    assert "Traceback" not in result.stdout
