"""A whole run: from a config to a student, resumed, refused, replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from safetensors.numpy import load
from spacy.language import Language
from spacy.tokens import DocBin
from thinc.api import Config

import spacy_distil
from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.config import load_config
from spacy_distil.distillation.pipeline.run import DistilledPipeline
from spacy_distil.distillation.pipeline.student import make_student
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.runs.interruption import RunInterrupted
from tests.distillation.pipeline.util import (
    annotated_examples,
    student_config,
    train_pipeline,
)
from tests.util import registry, write_encoder

PIPES = ("morphologizer", "tagger", "ner", "textcat")


@pytest.fixture
def config(bert_dir: Path, corpus: Path) -> Config:
    return student_config(bert_dir, corpus, PIPES)


@pytest.fixture
def tagger_config(bert_dir: Path, corpus: Path) -> Config:
    """A student of a single pipe, for tests in which the pipes do not matter."""
    config = student_config(bert_dir, corpus, ("tagger",))
    config["training"]["score_weights"] = {"tag_acc": 1.0}
    return config


def weights(pipeline: Path) -> dict[str, np.ndarray]:
    """All parameters of a saved pipeline."""
    nlp = spacy.load(pipeline)
    own = {}
    for name, pipe in nlp.pipeline:
        for i, node in enumerate(pipe.model.walk()):
            for parameter in node.param_names:
                own[f"{name} {i} {parameter}"] = node.get_param(parameter)
    files = get_encoder(nlp.get_pipe("transformer").model).to_files()
    return {**own, **load(files["model.safetensors"])}


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return all(np.array_equal(value, other[name]) for name, value in one.items())


def test_a_run_from_start_to_end(
    teacher: Language, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    config["training"]["max_steps"] = 8
    distilled = spacy_distil.distil_pipeline(teacher, config, output)
    assert isinstance(distilled, DistilledPipeline)
    assert distilled.path == output / "model-best"
    assert distilled.steps == 8
    assert distilled.step % 4 == 0

    nlp = spacy.load(distilled.path)
    assert get_encoder(nlp.get_pipe("transformer").model).n_layers == 1
    assert nlp.get_pipe("tagger").labels == teacher.get_pipe("tagger").labels
    assert nlp.meta["performance"]["tag_acc"] > 0
    doc = nlp("Ann visited New Rome.")
    assert all(token.tag_ for token in doc)
    assert doc.cats

    results = json.loads((output / "distil.json").read_text())
    assert results["finished"]
    assert results["score"] == distilled.score
    assert results["start"]["tagger"] == "the teacher's"
    assert results["cache_bytes"] > 0
    names = {path.name for path in output.iterdir()}
    assert names == {
        *("model-best", "model-last", "labels", "start", "cache"),
        *("distil.cfg", "distil.json"),
    }
    table = capsys.readouterr().out
    assert "LOSS TAGGER" in table
    assert "TAG_ACC" in table
    assert "12 documents with annotation, and 10 without" in " ".join(table.split())


def test_words_of_the_text_are_not_saved(
    teacher: Language, config: Config, corpus: Path, tmp_path: Path
) -> None:
    with (corpus / "text.jsonl").open("a") as file:
        file.write('\n{"text": "Zyzzyva met Quixotry in Rome."}\n')
    config["training"]["max_steps"] = 4
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    for name in ("model-best", "model-last"):
        nlp = spacy.load(tmp_path / "out" / name)
        assert "Zyzzyva" not in nlp.vocab.strings
        labels = [label for pipe in nlp.pipe_labels.values() for label in pipe]
        assert labels
        assert all(label in nlp.vocab.strings for label in labels)
        assert all(token.pos_ and token.tag_ for token in nlp("Zyzzyva visited Rome."))


def test_each_stage_learns_what_it_says(
    teacher: Language, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the losses of the table, a row for each evaluation."""
    config["training"]["logger"] = {
        "@loggers": "spacy.ConsoleLogger.v2",
        "output_file": str(tmp_path / "log.jsonl"),
    }
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    losses = [row["losses"] for row in rows]
    # Steps 0 to 3 are of hidden states, 4 to 7 of soft targets.
    assert losses[0]["transformer"] > 0
    assert losses[0]["tagger"] == 0
    assert losses[2]["tagger"] > 0
    assert losses[2]["textcat"] > 0
    capsys.readouterr()


def test_the_student_becomes_like_its_teacher(
    teacher: Language, tagger_config: Config, tmp_path: Path
) -> None:
    """With soft targets alone, on text that nobody annotated."""
    overrides: dict[str, Any] = {
        "training.max_steps": 60,
        "training.eval_frequency": 60,
        "training.optimizer.learn_rate.total_steps": 100,
        "training.optimizer.learn_rate.initial_rate": 0.005,
        "distillation.student.start": "config",
        "distillation.stages.hidden.share": 0.0,
        "distillation.stages.gold.share": 0.0,
    }
    distilled = spacy_distil.distil_pipeline(
        teacher, tagger_config, tmp_path / "out", overrides=overrides
    )
    student = spacy.load(distilled.path)
    texts = [example.text for example in annotated_examples(teacher, 20, start=100)]
    pairs = list(zip(teacher.pipe(texts), student.pipe(texts), strict=True))
    tokens = [(a.tag_ == b.tag_) for one, two in pairs for a, b in zip(one, two, strict=True)]
    assert np.mean(tokens) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["hidden", "gold"])
def test_a_killed_run_ends_as_one_that_was_not(
    stage: str, teacher: Language, config: Config, tmp_path: Path
) -> None:
    """Encoder, heads, projections, all optimizers, schedules and random numbers go on where they
    were.
    """
    config["distillation"]["cache"] = str(tmp_path / "cache")
    config["training"] |= {"max_steps": 24, "accumulate_gradient": 2}
    config["training"]["optimizer"]["use_averages"] = True
    if stage == "hidden":
        # Of another family and width, so that hidden states are projected.
        encoder = write_encoder(tmp_path / "encoder", "roberta", width=48, dropout=0.1)
        config["components"]["transformer"]["model"]["name"] = str(encoder)
        config["distillation"]["student"] = {"start": "config"}
        config["distillation"]["stages"] = {"hidden": {"share": 0.6}, "soft": {"share": 0.4}}
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "whole")

    pipeline, path = tmp_path / "teacher", tmp_path / "student.cfg"
    teacher.to_disk(pipeline)
    config.to_disk(path)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "spacy", "distil", "pipeline", str(pipeline), str(path)]
    process = subprocess.Popen(
        [*command, "--output", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    step = "step-00000008" if stage == "hidden" else "step-00000016"
    while process.poll() is None and not (killed / "checkpoints" / step).exists():
        time.sleep(0.01)
    assert process.poll() is None, "it was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not json.loads((killed / "distil.json").read_text())["finished"]

    with pytest.raises(ConfigError, match="--resume"):
        spacy_distil.distil_pipeline(teacher, config, killed)
    spacy_distil.distil_pipeline(teacher, config, killed, resume=True)
    assert same(killed / "model-last", tmp_path / "whole" / "model-last")
    assert same(killed / "model-best", tmp_path / "whole" / "model-best")


# Steps in which the process gets SIGTERM. A callback, since a run has no other place of a test's.
TERMINATED: set[int] = set()


def make_terminate() -> Any:
    def terminate(nlp: Language, info: Mapping[str, Any]) -> None:
        if info["step"] in TERMINATED:
            TERMINATED.discard(info["step"])
            os.kill(os.getpid(), signal.SIGTERM)

    return terminate


@pytest.mark.slow
def test_sigterm_makes_a_checkpoint(teacher: Language, config: Config, tmp_path: Path) -> None:
    """Between evaluations, and in a step that an evaluation follows."""
    registry.callbacks.register("tests.Terminate.v1", func=make_terminate)
    config["training"]["before_update"] = {"@callbacks": "tests.Terminate.v1"}
    config["training"]["optimizer"]["use_averages"] = True
    config["distillation"]["cache"] = str(tmp_path / "cache")
    whole = spacy_distil.distil_pipeline(teacher, config, tmp_path / "whole")

    output = tmp_path / "stopped"
    for step in (0, 5, 8):
        TERMINATED.add(step)
        message = f"stopped by SIGTERM after step {step} of 12, and saved a checkpoint.*--resume"
        with pytest.raises(RunInterrupted, match=message):
            spacy_distil.distil_pipeline(teacher, config, output, resume=True)
        assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    TERMINATED.add(12)  # in the last step the run finishes first
    stopped = spacy_distil.distil_pipeline(teacher, config, output, resume=True)
    assert replace(stopped, path=whole.path) == whole
    for name in ("model-best", "model-last"):
        found, expected = tmp_path / "stopped" / name, tmp_path / "whole" / name
        assert same(found, expected)
        assert (found / "meta.json").read_bytes() == (expected / "meta.json").read_bytes()


def test_a_run_with_pauses(
    teacher: Language, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with the weights of a run without."""
    config["distillation"]["cache"] = str(tmp_path / "cache")
    whole = spacy_distil.distil_pipeline(teacher, config, tmp_path / "whole")
    output = tmp_path / "paused"
    # At an evaluation; again, which trains nothing; between evaluations; beyond the end.
    for until, reached in ((4, 4), (4, 4), (5, 8)):
        paused = spacy_distil.distil_pipeline(teacher, config, output, resume=True, until=until)
        assert paused.steps == reached
        assert paused.path.is_dir()
        assert f"Paused after step {reached} of 12" in capsys.readouterr().out
        assert json.loads((output / "distil.json").read_text())["finished"] is False
    ended = spacy_distil.distil_pipeline(teacher, config, output, resume=True, until=99)
    assert replace(ended, path=whole.path) == whole
    for name in ("model-best", "model-last"):
        assert same(output / name, tmp_path / "whole" / name)
    with pytest.raises(ConfigError, match="until = -1: expected the number of a step"):
        spacy_distil.distil_pipeline(teacher, config, output, resume=True, until=-1)


@pytest.mark.slow
def test_a_finished_run_returns_at_once_and_another_is_refused(
    teacher: Language, tagger_config: Config, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    tagger_config["training"]["max_steps"] = 4
    first = spacy_distil.distil_pipeline(teacher, tagger_config, output)
    saved = (first.path / "meta.json").stat().st_mtime_ns
    assert (
        spacy_distil.distil_pipeline(teacher, tagger_config, output, resume=True, force=True)
        == first
    )
    assert (first.path / "meta.json").stat().st_mtime_ns == saved

    changed = {"distillation.temperature": 2.0}
    with pytest.raises(ConfigError, match=r"have changed: distillation\.temperature"):
        spacy_distil.distil_pipeline(teacher, tagger_config, output, resume=True, overrides=changed)
    docs = [example.reference for example in annotated_examples(teacher, 11)]
    DocBin(docs=docs, store_user_data=True).to_disk(corpus / "train.spacy")
    with pytest.raises(ConfigError, match="contents of the documents"):
        spacy_distil.distil_pipeline(teacher, tagger_config, output, resume=True)
    spacy_distil.distil_pipeline(teacher, tagger_config, output, resume=True, force=True)
    assert (first.path / "meta.json").stat().st_mtime_ns != saved


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    """All files, and when they were written. The cache is no result."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file() and "cache" not in path.relative_to(directory).parts
    }


@pytest.mark.slow
def test_an_error_leaves_the_run_to_replace(
    teacher: Language, tagger_config: Config, corpus: Path, tmp_path: Path
) -> None:
    """Whether the settings are wrong or, with the same settings, the documents."""
    output = tmp_path / "out"
    tagger_config["training"]["max_steps"] = 4
    spacy_distil.distil_pipeline(teacher, tagger_config, output)
    before = contents(output)
    assert {"model-best/meta.json", "labels/tagger.json", "start/config.json"} <= before.keys()
    wrong = {"training.seed": 5, "distillation.hidden.layers": [[9, 1]]}
    for resume in (False, True):
        with pytest.raises(ConfigError, match="9"):
            spacy_distil.distil_pipeline(
                teacher, tagger_config, output, resume=resume, force=True, overrides=wrong
            )
        assert contents(output) == before
    docs = [spacy.blank("en")("Nobody annotated this.")]
    DocBin(docs=docs).to_disk(corpus / "dev.spacy")
    for resume in (False, True):
        with pytest.raises(CorpusError, match="development"):
            spacy_distil.distil_pipeline(teacher, tagger_config, output, resume=resume, force=True)
        assert contents(output) == before


@pytest.mark.slow
def test_a_finished_run_writes_nothing(
    teacher: Language, tagger_config: Config, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    tagger_config["training"]["max_steps"] = 4
    first = spacy_distil.distil_pipeline(teacher, tagger_config, output)
    before = contents(output)
    changed = {"training.logger": {"@loggers": "spacy.ConsoleLogger.v1"}}  # a free setting
    for overrides in (None, changed):
        again = spacy_distil.distil_pipeline(
            teacher, tagger_config, output, resume=True, overrides=overrides
        )
        assert again == first
        assert contents(output) == before


def test_annotation_counts_as_an_input(
    teacher: Language, tagger_config: Config, corpus: Path, tmp_path: Path
) -> None:
    tagger_config["training"]["max_steps"] = 4
    spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out")
    docs = [example.reference for example in annotated_examples(teacher, 12)]
    docs[0][0].tag_ = docs[0][1].tag_
    DocBin(docs=docs, store_user_data=True).to_disk(corpus / "train.spacy")
    with pytest.raises(ConfigError, match="contents of their annotation"):
        spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out", resume=True)


def test_a_stale_cache_is_refused(
    teacher: Language, tagger_config: Config, corpus: Path, tmp_path: Path
) -> None:
    tagger_config["training"]["max_steps"] = 4
    tagger_config["distillation"]["cache"] = str(tmp_path / "cache")
    spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "one")
    (corpus / "text.jsonl").write_text(json.dumps({"text": "Bob paid 20 $."}), encoding="utf8")
    with pytest.raises(ConfigError, match="the documents"):
        spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "two")


def test_other_layers_make_another_cache(
    teacher: Language, tagger_config: Config, tmp_path: Path
) -> None:
    tagger_config["training"]["max_steps"] = 4
    tagger_config["distillation"]["cache"] = str(tmp_path / "cache")
    tagger_config["distillation"]["hidden"] = {"layers": [[1, 2]]}
    spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "one")
    tagger_config["distillation"]["hidden"] = {"layers": [[1, 1]]}
    with pytest.raises(ConfigError, match="what is recorded"):
        spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "two")


def test_a_run_that_failed_before_it_began_is_tried_again(
    teacher: Language, tagger_config: Config, corpus: Path, tmp_path: Path
) -> None:
    """Without --force: there is nothing yet that could be lost."""
    tagger_config["training"]["max_steps"] = 4
    wrong = {"corpora.train.path": str(corpus / "trian.spacy")}
    with pytest.raises((CorpusError, OSError, ValueError), match="trian"):
        spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out", overrides=wrong)
    spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out")


@pytest.mark.slow
def test_frozen_and_sourced_pipes_stay_as_they_are(
    teacher: Language, bert_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    """And the frozen encoder cannot learn hidden states."""
    config = student_config(bert_dir, corpus, ("tagger", "textcat"))
    config["training"]["score_weights"] = {"tag_acc": 1.0}
    other = train_pipeline(bert_dir, ("tagger",), steps=1)
    other.to_disk(tmp_path / "other")
    config["components"]["tagger"] = {
        "source": str(tmp_path / "other"),
        "replace_listeners": ["model.tok2vec"],
    }
    config["training"] |= {"max_steps": 4, "frozen_components": ["tagger"]}
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    student = spacy.load(tmp_path / "out" / "model-last")
    own: Any = student.get_pipe("tagger")
    source: Any = other.get_pipe("tagger")
    weights = [pipe.model.get_ref("softmax").get_param("W") for pipe in (own, source)]
    assert np.array_equal(*weights)

    config["components"]["transformer"]["model"]["frozen"] = True
    with pytest.raises(ConfigError, match="is frozen, and cannot learn hidden states"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "again")


def test_a_sourced_pipe_gets_no_labels(
    teacher: Language, tagger_config: Config, bert_dir: Path, tmp_path: Path
) -> None:
    """It has its own, and is not initialized."""
    train_pipeline(bert_dir, ("tagger",), steps=0).to_disk(tmp_path / "other")
    tagger_config["components"]["tagger"] = {"source": str(tmp_path / "other")}
    settings = load_config(tagger_config)
    student, start = make_student(settings, teacher, tmp_path / "out", -1)
    assert student.get_pipe("tagger").labels
    assert "tagger" not in start
    assert student.config["initialize"]["components"] == {}
    assert not (tmp_path / "out" / "labels").exists()


@pytest.mark.parametrize("size", [None, 8])
def test_a_student_of_alberts_form(
    teacher: Language, config: Config, tmp_path: Path, size: int | None
) -> None:
    config["training"]["max_steps"] = 8
    config["distillation"]["student"] = {
        "layers": [0, 1],
        "n_layers": None,
        "share_layers": True,
        "embedding_size": size,
    }
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    nlp = spacy.load(distilled.path)
    encoder = get_encoder(nlp.get_pipe("transformer").model).loaded.config
    assert (encoder["model_type"], encoder["num_hidden_groups"]) == ("albert", 1)
    assert (encoder["num_hidden_layers"], encoder["embedding_size"]) == (2, size or 32)
    results = json.loads((tmp_path / "out" / "distil.json").read_text())
    start = results["start"]["transformer"]
    assert start.startswith("the lowest of the teacher's layers, applied 2 times")
    assert ("factorized to 8 dimensions" in start) == (size is not None)
    # The same run again ends with the same weights.
    assert same(
        distilled.path, spacy_distil.distil_pipeline(teacher, config, tmp_path / "again").path
    )
    spacy_distil.quantize(distilled.path, tmp_path / "int8", min_agreement=0.0)
    texts = [
        "Ann visited Rome.",
        "",
        " \n ",
        "\U0001f600 e\u0301",
        "\u6771\u4eac \x07",
        "Rome " * 300,
    ]
    for own, int8 in zip(nlp.pipe(texts), spacy.load(tmp_path / "int8").pipe(texts), strict=True):
        error = np.linalg.norm(int8.tensor - own.tensor)
        assert error <= 0.05 * np.linalg.norm(own.tensor)


@pytest.mark.parametrize("cuts", [{"ffn": 20}, {"heads": 2, "ffn": 16}, {"width": 16, "heads": 2}])
def test_a_student_with_cut_layers(
    teacher: Language, config: Config, tmp_path: Path, cuts: dict[str, int]
) -> None:
    config["training"]["max_steps"] = 4
    config["distillation"]["student"] = {"layers": [0, 1], "n_layers": None, **cuts}
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    encoder = get_encoder(spacy.load(distilled.path).get_pipe("transformer").model).loaded.config
    found = {
        "heads": encoder["num_attention_heads"],
        "ffn": encoder["intermediate_size"],
        "width": encoder["hidden_size"],
    }
    assert {key: found[key] for key in cuts} == cuts
    start = json.loads((tmp_path / "out" / "distil.json").read_text())["start"]
    assert start["transformer"].startswith("2 of the teacher's layers, cut to ")
    same_width = "width" not in cuts
    assert (start["tagger"] == "the teacher's") == same_width
    # The neurons that stay are the teacher's own, the most important ones.
    if same_width:
        name = "encoder.layer.0.intermediate.dense.weight"
        teacher.to_disk(tmp_path / "teacher")
        kept, given = (
            load((tmp_path / folder / "model.safetensors").read_bytes())[name]
            for folder in ("out/start", "teacher/transformer")
        )
        assert len(kept) == cuts["ffn"] < len(given)
        assert all((row == given).all(axis=1).any() for row in kept)
    again = spacy_distil.distil_pipeline(teacher, config, tmp_path / "again")
    assert same(distilled.path, again.path)


def test_cuts_that_cannot_be(teacher: Language, config: Config, tmp_path: Path) -> None:
    config["distillation"]["student"] = {"ffn": 10_000}
    with pytest.raises(ConfigError, match=r"student\.ffn = 10000: must be from 1 to the teacher"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")


def test_a_form_without_the_teachers_layers_is_refused(
    teacher: Language, tagger_config: Config, tmp_path: Path
) -> None:
    tagger_config["distillation"]["student"] |= {"start": "config", "share_layers": True}
    with pytest.raises(ConfigError, match=r"student\.share_layers = true: .*start = \"config\""):
        spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out")


def test_a_teacher_that_cleans_up_after_itself(
    teacher: Language, config: Config, tmp_path: Path
) -> None:
    """Its hidden states are read before they are gone."""
    config["training"]["max_steps"] = 4
    teacher.add_pipe("doc_cleaner", config={"attrs": {"tensor": None}})
    try:
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    finally:
        teacher.remove_pipe("doc_cleaner")


def test_steps_that_are_no_multiple_of_evaluations(
    teacher: Language, tagger_config: Config, tmp_path: Path
) -> None:
    tagger_config["training"] |= {"max_steps": 6, "eval_frequency": 4}
    distilled = spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out")
    assert distilled.steps == 6
    assert distilled.step in (0, 4)


def test_an_empty_development_corpus_is_an_error(
    teacher: Language, config: Config, corpus: Path, tmp_path: Path
) -> None:
    DocBin().to_disk(corpus / "dev.spacy")
    with pytest.raises(CorpusError, match=r"\[paths\] dev"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")


def test_a_cnn_student_learns_from_a_transformer(
    teacher: Language, config: Config, corpus: Path, tmp_path: Path
) -> None:
    """Any pipeline can learn. It starts as its config says."""
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": {"width": 32, "depth": 1, "embed_size": 200}})
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 32}
    nlp.add_pipe("tagger", config={"model": {"tok2vec": listener}})
    config["nlp"]["pipeline"] = ["tok2vec", "tagger"]
    config["components"] = nlp.config["components"]
    config["training"]["score_weights"] = {"tag_acc": 1.0}
    with pytest.raises(ConfigError, match="hidden states could be"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    overrides = {"distillation.stages.hidden.share": 0.0}
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", overrides=overrides)
    assert spacy.load(distilled.path)("Ann visited Rome.")[0].tag_


def test_a_pipe_that_the_teacher_lacks_learns_from_annotation(
    teacher: Language, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with teacher.select_pipes(disable=["tagger"]):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    assert "Learning from annotation alone: tagger" in capsys.readouterr().out
    assert spacy.load(tmp_path / "out" / "model-last")("Ann visited Rome.")[0].tag_


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"distillation.hidden.layers": [[9, 1]]}, "9"),
        ({"distillation.pipes.transformer.weight": 2.0}, "this pipe is the encoder"),
        ({"distillation.student.start": "teacher", "distillation.student.n_layers": 7}, "7"),
        ({"training.patience": "much"}, "patience"),
        ({"corpora.dev.path": "${paths.nowhere}"}, "nowhere"),
        ({"distillation.corpus": None, "corpora.train.path": "none.spacy"}, "none"),
    ],
)
def test_wrong_settings_are_named(
    overrides: dict[str, Any], message: str, teacher: Language, config: Config, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, CorpusError, OSError, ValueError), match=message):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", overrides=overrides)
    assert not (tmp_path / "out" / "model-best").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"components.tagger.factory": "tager"}, "needs the factory 'tager', .*--code"),
        (
            {"components.tagger.model.@architectures": "mine.Tagger.v1"},
            r"function 'mine\.Tagger\.v1', .*--code",
        ),
        ({"corpora.dev.@readers": "mine.Corpus.v1"}, r"function 'mine\.Corpus\.v1', .*--code"),
        ({"training.logger.@loggers": "mine.Log.v1"}, r"function 'mine\.Log\.v1', .*--code"),
        ({"components.tagger": {"source": "/nope"}}, r"OSError: \[E050\]"),
        ({"components.tagger": {"source": "SOURCE"}}, r"KeyError: \[E944\]"),
        ({"nlp.pipeline": ["transformer", "tager"]}, r"ValueError: \[E956\]"),
        ({"training.frozen_components": ["tager"]}, r"\[E001\]"),
        ({"initialize.vectors": "/nope"}, r"OSError: \[E884\]"),
    ],
)
def test_what_spacy_says_of_the_students_config_is_one_sentence(
    overrides: dict[str, Any],
    message: str,
    teacher: Language,
    tagger_config: Config,
    tmp_path: Path,
) -> None:
    spacy.blank("en").to_disk(tmp_path / "source")
    for setting, value in overrides.items():
        *sections, name = setting.split(".")
        block: Any = tagger_config
        for section in sections:
            block = block[section]
        block[name] = {"source": str(tmp_path / "source")} if "SOURCE" in str(value) else value
    with pytest.raises(ConfigError, match=f"The student's config .*{message}"):
        spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out")


def test_silver_annotation_has_no_weights(
    teacher: Language, config: Config, tmp_path: Path
) -> None:
    """Which is known before the teacher has done anything."""
    overrides = {"distillation.pipes.ner.target": "silver", "distillation.stages.gold.gold": 0.5}
    with pytest.raises(ConfigError, match="cannot be weighted"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", overrides=overrides)
    assert not (tmp_path / "out" / "cache").exists()


def test_a_block_that_is_no_pipe(teacher: Language, config: Config, tmp_path: Path) -> None:
    config["distillation"]["pipes"] = {"tager": {"weight": 2.0}}
    with pytest.raises(ConfigError, match="the student has no such pipe"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")


def test_other_files_in_the_output_stay(teacher: Language, config: Config, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("a year's work")
    with pytest.raises(ConfigError, match="holds files"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_patience_ends_a_run_in_its_last_stage(
    teacher: Language, tagger_config: Config, tmp_path: Path
) -> None:
    overrides = {
        "training.max_steps": 80,
        "training.patience": 12,
        "training.optimizer.learn_rate.initial_rate": 0.0,
        "distillation.stages.hidden.share": 0.1,
        "distillation.stages.soft.share": 0.3,
        "distillation.stages.gold.share": 0.0,
    }
    spacy_distil.distil_pipeline(teacher, tagger_config, tmp_path / "out", overrides=overrides)
    results = json.loads((tmp_path / "out" / "distil.json").read_text())
    # Nothing learns, so all evaluations are equal. Stage "soft" begins at step 20.
    assert 20 + 12 <= results["steps"] <= 20 + 12 + 4
    assert results["step"] == results["steps"] - results["steps"] % 4


def test_pairs_and_what_is_missing_are_told(
    bert_dir: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names differ: a pipe learns from the only one of a kind that suits, or a setting is named."""
    pipes = {"entities": "distil_ner", "first": "tagger", "second": "tagger", "topics": "textcat"}
    teacher = train_pipeline(bert_dir, pipes, steps=5)
    config = student_config(bert_dir, corpus, ("ner", "tagger"))
    config["training"] |= {"max_steps": 4, "score_weights": {"ents_f": 1.0}}
    config["distillation"]["stages"] = {}
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    assert "ner learns the teacher's decisions (entities)" in output
    assert "Learning from annotation alone: tagger" in output
    assert "several pipes suit: 'first', 'second' of the teacher, 'tagger' of the student" in output
    assert "Set teacher in [distillation.pipes.tagger]" in output
    assert (
        "Pipes of the teacher that the student does not have: first (tagger), second (tagger), "
        "topics (textcat)" in output
    )
    labels = [path.stem for path in (tmp_path / "out" / "labels").iterdir()]
    assert labels == ["ner"]
    assert set(spacy.load(distilled.path).get_pipe("ner").labels) == {"PER", "LOC"}
