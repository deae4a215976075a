"""scripts.distil_pipeline: every seed by `spacy distil pipeline`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import spacy
from spacy.language import Language
from thinc.api import Config
from typer.testing import CliRunner

from scripts import distil_pipeline
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import student_config, train_pipeline, write_corpus

PIPES = ("tagger", "ner")


@pytest.fixture
def teacher(bert_dir: Path, tmp_path: Path) -> Path:
    train_pipeline(bert_dir, PIPES, steps=10).to_disk(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def corpus(tmp_path: Path, bert_dir: Path) -> Path:
    directory = tmp_path / "corpus"
    directory.mkdir()
    nlp: Language = spacy.blank("en")
    write_corpus(directory, nlp)
    summary = {"splits": {"train": {"tokens": 120}}, "text": {"words": 60}}
    (directory / "corpus.json").write_text(json.dumps(summary))
    config: Config = student_config(bert_dir, directory, PIPES)
    config["paths"]["text"] = None
    config["corpora"]["text"]["path"] = "${paths.text}"
    for name in ("train", "dev"):
        config["corpora"][name]["path"] = f"${{paths.{name}}}"
    config.to_disk(directory / "student.cfg")
    return directory


def run(teacher: Path, corpus: Path, output: Path, *options: str) -> None:
    command = [str(teacher), str(corpus / "student.cfg"), str(output), "--corpus", str(corpus)]
    import typer

    app = typer.Typer()
    context = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=context)(distil_pipeline.main)
    result = CliRunner().invoke(app, [*command, "--epochs", "4", *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_every_seed_is_distilled_once_with_one_cache(
    teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "distilled"
    text = ["--text", str(corpus / "text.jsonl"), "--seeds", "0,1"]
    run(teacher, corpus, output, *text)
    assert {path.name for path in output.iterdir()} == {"seed-0", "seed-1", "cache", "best"}
    config = spacy.util.load_config(output / "seed-1" / "model-best" / "config.cfg")
    assert config["system"]["seed"] == 1
    assert (
        config["training"]["max_steps"] == 10
    )  # 4 epochs of 180 words in batches of 60, and 10 evaluations
    saved = (output / "seed-0" / "model-best" / "meta.json").stat().st_mtime_ns
    run(teacher, corpus, output, *text)
    assert (output / "seed-0" / "model-best" / "meta.json").stat().st_mtime_ns == saved
    # Without text the documents are others, and so are the students.
    run(teacher, corpus, output, "--seeds", "0")
    assert (output / "seed-0" / "model-best" / "meta.json").stat().st_mtime_ns != saved


def test_a_missing_teacher_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, AssertionError), match="Train the teacher first"):
        run(tmp_path / "nobody", corpus, tmp_path / "distilled")
