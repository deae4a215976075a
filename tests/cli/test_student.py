"""`spacy distil student` as users call it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.students.teachers import load_teacher
from tests.cli.test_encoder import distil_without_torch
from tests.teachers import teacher_dir, text_file  # noqa: F401 (fixtures)

TeacherDir = Callable[..., Path]


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and output, its lines joined: messages are wrapped to the terminal's width."""
    result = CliRunner().invoke(distil_cli, ["student", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def teacher(teacher_dir: TeacherDir) -> Path:  # noqa: F811
    return teacher_dir("bert", head=True)


def test_report_without_a_corpus(teacher: Path) -> None:
    status, output = run(teacher, "--layers", "3", "--heads", "1", "--ffn", "20", "--threads", "1")
    assert status == 0, output
    for part in (
        "teacher student",
        "layers 4 3",
        "heads x size 2 x 8 1 x 16",
        "feed-forward neurons 32 20",
        "width 16 16",
        "parameters 10,",
        "size, int8 (estimated)",
        "pieces/s here",
        "Layers 0, 1, 2 of the teacher's 4",
        "English example sentences",
        "Its weights were random",
    ):
        assert part in output
    assert "Importance of heads" not in output


def test_student_is_cut_by_importance_and_saved(
    teacher: Path,
    text_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "student"
    status, output = run(
        *(teacher, "--layers", "1,3", "--width", "8", "--ffn", "20", "--threads", "1"),
        *("--corpus", text_file, "--output", path),
    )
    assert status == 0, output
    assert "Importance of heads, by masked LM loss on 64 blocks" in output
    assert "1.00 pieces a word in the corpus" in output
    assert "Layers 1, 3 of" in output
    assert "Saved the student to" in output
    model = AutoModelForMaskedLM.from_pretrained(path)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 8, 1)
    assert config.intermediate_size == 20
    pieces = AutoTokenizer.from_pretrained(path)("ba be bi", return_tensors="pt")["input_ids"]
    assert model(input_ids=pieces).logits.shape == (1, pieces.shape[1], config.vocab_size)
    # Every row of its embeddings is one of the teacher's, less half of the dimensions.
    key = "bert.embeddings.word_embeddings.weight"
    mine, whole = (load_file(p / "model.safetensors")[key] for p in (path, teacher))
    columns = {tuple(column.tolist()) for column in whole.T}
    assert all(tuple(column.tolist()) in columns for column in mine.T)
    assert not torch.equal(mine, whole[:, :8])
    status, output = run(teacher, "--output", path)
    assert status == 1
    assert "exists. Choose another directory" in output


def test_a_student_with_fewer_pieces(
    teacher: Path,
    text_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """It encodes text of the pieces that it keeps as before, and text of others, too."""
    whole, small = tmp_path / "whole", tmp_path / "small"
    options = ("--layers", "2", "--threads", "1")
    assert run(teacher, *options, "--output", whole)[0] == 0
    old = AutoTokenizer.from_pretrained(whole)
    size = len(old) - 3
    arguments = ("--vocab-size", str(size), "--prune-vocab", text_file, "--output", small)
    status, output = run(teacher, *options, *arguments)
    assert status == 0, output
    new = AutoTokenizer.from_pretrained(small)
    models = [AutoModel.from_pretrained(path).eval() for path in (whole, small)]
    assert len(new) == size == models[1].config.vocab_size
    assert new.convert_ids_to_tokens(models[1].config.pad_token_id) == "[PAD]"
    assert new.model_max_length == old.model_max_length
    words = text_file.read_text().split("\n")[0].split()
    text = " ".join(word for word in words if old.tokenize(word) == new.tokenize(word))
    assert len(text) > 20
    with torch.no_grad():
        expected, found = (
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            for model, tokenizer in zip(models, (old, new), strict=True)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    (dropped, *_) = old.get_vocab().keys() - new.get_vocab().keys()
    assert new.tokenize(dropped.removeprefix("##"))
    assert load_teacher(str(small)).has_mlm_head
    status, output = run(teacher, *options, "--min-count", "2")
    assert status == 1
    assert "--prune-vocab counts: name text with that option, too" in " ".join(output.split())


def test_student_of_whole_layers_needs_no_corpus(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "student"
    status, output = run(teacher, "--layers", "1", "--from", "last", "--output", path)
    assert status == 0, output
    assert "Layers 3 of" in output
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert f"Cut out of `{teacher}` with spacy-distil: its layers 3 (0" in card
    assert "| layers | 4 | 1 |" in card
    assert "has not been trained" in card
    assert "## Licence\n\nUnknown: " in card
    key = "bert.encoder.layer.{}.output.dense.weight"
    mine = load_file(path / "model.safetensors")[key.format(0)]
    assert torch.equal(mine, load_file(teacher / "model.safetensors")[key.format(3)])


def test_the_same_call_makes_the_same_student(
    teacher: Path,
    text_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    paths = [tmp_path / "one", tmp_path / "other"]
    for path in paths:
        status, output = run(teacher, "--heads", "1", "--corpus", text_file, "--output", path)
        assert status == 0, output
    for name in ("model.safetensors", "README.md"):
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "3"], "--heads = 3: must be from 1 to the teacher's 2"),
        (["--width", "12"], "--width = 12: it is no multiple of 8"),
        (["--layers", "5"], "--layers 5: must be from 1 to the teacher's 4"),
        (["--layers", "-1"], "--layers -1: must be from 1"),
        (["--layers", ""], "--layers '': expected a number"),
        (
            ["--layers", "0,1", "--from", "last"],
            "--layers 0,1 says which layers, and so",
        ),
        (["--layers", "2", "--from", "all"], "--layers 2 with --from all, which is all 4"),
        (["--layers", "0,4"], "--layers = [0, 4]: must list layers"),
        (["--layers", "x"], "--layers x: expected a number"),
        (["--layers", ","], "--layers = []"),
        (["--width", "8", "--output", "new"], "Name some with --corpus"),
        (["--corpus", "none.txt", "--ffn", "20"], "--corpus: none.txt does not exist"),
        (["--vocab-size", "50"], "--prune-vocab counts: name text with that option, too"),
    ],
)
def test_what_cannot_be_is_refused(teacher: Path, arguments: list[str], message: str) -> None:
    status, output = run(teacher, *arguments)
    assert (status, message in output) == (1, True), output
    assert not Path("new").exists()


def test_missing_extra_is_named() -> None:
    result = distil_without_torch("student", "some/teacher")
    assert result.returncode == 1
    assert "pip install 'spacy-distil[train]'" in " ".join(result.stdout.split())
    assert "Traceback" not in result.stderr
