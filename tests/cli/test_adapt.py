"""`spacy distil adapt` as users call it: a teacher learns text, and has a head afterwards."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from spacy.cli._util import app
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner, Result

import spacy_distil.cli  # noqa: F401 (registers the commands)
from tests.teachers import WORDS, log_of, write_teacher

QUICK = {
    "--gpu-id": "-1",
    "--corpus.block_size": "24",
    "--corpus.dev_fraction": "0.1",
    "--training.mixed_precision": "no",
    "--training.micro_batch": "8",
    "--training.tensorboard": "false",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Of which few words make up most, which is soon learned."""
    weights = [1 / rank**2 for rank in range(1, len(WORDS) + 1)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(random.Random(5).choices(WORDS, weights, k=3000)))
    return path


def adapt(teacher: Path | str, text: Path, output: Path, *flags: str, **training: str) -> Result:
    options = {**QUICK, **{f"--training.{key}": value for key, value in training.items()}}
    return CliRunner().invoke(
        app,
        [
            *("distil", "adapt", str(teacher), "--corpus", str(text), "--output", str(output)),
            *(part for option in options.items() for part in option),
            *flags,
        ],
    )


def losses(output: Path) -> list[float]:
    """Held-out masked-LM losses, in order."""
    return [line["masked_lm"] for line in log_of(output, "held_out")]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), [("bert", True), ("electra", False)])
def test_a_teacher_learns_the_text_and_has_a_head(
    tmp_path: Path, text: Path, family: str, head: bool
) -> None:
    teacher, output = tmp_path / "teacher", tmp_path / "out"
    write_teacher(teacher, family, head=head)
    result = adapt(teacher, text, output, epochs="null", max_steps="25", learn_rate="2e-2")
    assert result.exit_code == 0, result.output
    first, last = losses(output)
    assert last < first - 0.7
    model, report = AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_hidden_layers == 4
    assert ("Its masked-LM head is new" in (output / "README.md").read_text()) is not head


def test_it_starts_as_the_teacher(tmp_path: Path, text: Path) -> None:
    """Nothing is lost on the way in or out: a step of hardly any length changes hardly anything."""
    teacher, output = tmp_path / "teacher", tmp_path / "out"
    write_teacher(teacher, "bert", head=True)
    assert adapt(teacher, text, output, max_steps="1", learn_rate="1e-9").exit_code == 0
    before, after = (load_file(path / "model.safetensors") for path in (teacher, output))
    assert before.keys() == after.keys()
    for key, weight in before.items():
        torch.testing.assert_close(after[key], weight, rtol=0, atol=1e-7)
    assert before["bert.embeddings.word_embeddings.weight"].shape[0] > 60


@pytest.mark.slow
def test_resuming_and_overwriting(tmp_path: Path, text: Path) -> None:
    teacher, output = tmp_path / "teacher", tmp_path / "out"
    write_teacher(teacher, "distilbert", head=False)
    assert adapt(teacher, text, output, max_steps="3").exit_code == 0
    again = adapt(teacher, text, output, max_steps="3")
    assert again.exit_code == 1
    assert "--force" in " ".join(again.output.split())
    assert "Finished already" in adapt(teacher, text, output, "--resume", max_steps="3").output
    assert adapt(teacher, text, output, "--force", max_steps="2").exit_code == 0
    assert json.loads((output / "distil.json").read_text())["steps"] == 2


def test_errors_are_printed(tmp_path: Path, text: Path) -> None:
    output = tmp_path / "out"
    result = adapt("no/such/teacher", text, output)
    assert result.exit_code == 1
    assert "teacher.name = 'no/such/teacher' cannot be loaded" in " ".join(result.output.split())
    result = adapt("no/such/teacher", text, output, learn_rate="-1")
    assert result.exit_code == 1
    assert "training.learn_rate = -1" in " ".join(result.output.split())
    assert not output.exists()


def test_a_corpus_is_asked_for() -> None:
    result = CliRunner().invoke(app, ["distil", "adapt", "teacher", "--output", "out"])
    assert result.exit_code == 2
    assert "--corpus" in result.output
