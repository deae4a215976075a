"""Head detection, the heads themselves, and which weights a student starts with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spacy_distil.distillation.heads import masked_lm_head
from spacy_distil.distillation.students import choose_layers, make_student
from spacy_distil.distillation.teachers import load_teacher
from spacy_distil.errors import ConfigError, WeightsError

TeacherDir = Callable[..., Path]
each_family = pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])


@each_family
@pytest.mark.parametrize("head", [True, False])
def test_teacher_is_loaded_frozen_and_its_head_detected(
    teacher_dir: TeacherDir, family: str, head: bool
) -> None:
    teacher = load_teacher(str(teacher_dir(family, head=head)))
    assert teacher.has_head is head
    assert (masked_lm_head(teacher.model) is not None) is head
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    saved = load_file(teacher_dir(family, head=head) / "model.safetensors")
    loaded = teacher.model.state_dict()
    compared = [key for key in saved if "pooler" not in key]
    assert len(compared) > 50
    for key in compared:
        torch.testing.assert_close(loaded[key], saved[key], rtol=0, atol=0)


def test_half_precision_checkpoint_is_taught_from_in_float32(
    teacher_dir: TeacherDir, tmp_path: Path
) -> None:
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "half")
    weights = load_file(path / "model.safetensors")
    half = {key: value.half() for key, value in weights.items()}
    save_file(half, path / "model.safetensors", metadata={"format": "pt"})
    teacher = load_teacher(str(path))
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}


@each_family
def test_head_gives_the_logits_of_the_model(teacher_dir: TeacherDir, family: str) -> None:
    model = load_teacher(str(teacher_dir(family, head=True))).model
    pieces = torch.randint(5, 60, (3, 9))
    with torch.no_grad():
        expected = model(input_ids=pieces).logits
        head = masked_lm_head(model)
        found = head.decode(head.transform(model.base_model(input_ids=pieces)[0]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@each_family
@pytest.mark.parametrize("head", [True, False])
def test_student_has_the_chosen_layers_of_the_teacher(
    teacher_dir: TeacherDir, family: str, head: bool
) -> None:
    teacher = load_teacher(str(teacher_dir(family, head=head)))
    layers = [0, 3]
    student = make_student(teacher, layers)
    assert type(student) is type(teacher.model)
    assert student.config.num_hidden_layers == 2
    assert teacher.model.config.num_hidden_layers == 4
    source, copy = teacher.model.state_dict(), student.state_dict()
    seen = set()
    for key, value in copy.items():
        parts = key.split(".")
        if "layer" in parts:
            place = parts.index("layer") + 1
            seen.add(int(parts[place]))
            parts[place] = str(layers[int(parts[place])])
        assert torch.equal(value, source[".".join(parts)]), key
        assert value.data_ptr() != source[".".join(parts)].data_ptr()
    assert seen == {0, 1}
    # Everything of the teacher but its layers is there: embeddings and head.
    assert {k for k in source if ".layer." not in k} == {k for k in copy if ".layer." not in k}
    assert not any("pooler" in key for key in copy)
    assert all(parameter.requires_grad for parameter in student.parameters())


@each_family
def test_student_ties_its_decoder_as_the_teacher_does(teacher_dir: TeacherDir, family: str) -> None:
    student = make_student(load_teacher(str(teacher_dir(family, head=True))), [0])
    embeddings, decoder = student.get_input_embeddings(), student.get_output_embeddings()
    assert embeddings.weight is decoder.weight


def test_student_of_all_layers_is_the_teacher(teacher_dir: TeacherDir) -> None:
    teacher = load_teacher(str(teacher_dir("bert", head=True)))
    student = make_student(teacher, [0, 1, 2, 3]).eval()
    pieces = torch.randint(5, 60, (3, 9))
    with torch.no_grad():
        assert torch.equal(student(input_ids=pieces).logits, teacher.model(pieces).logits)


@pytest.mark.parametrize(
    ("layers", "n_layers", "available", "chosen"),
    [
        ("first", 3, 6, [0, 1, 2]),
        ("first", None, 12, [0, 1, 2, 3, 4, 5]),
        ("first", None, 1, [0]),
        ("even", 3, 6, [0, 2, 4]),
        ("even", None, 12, [0, 2, 4, 6, 8, 10]),
        ("even", 5, 12, [0, 2, 4, 7, 9]),
        ("even", 6, 6, [0, 1, 2, 3, 4, 5]),
        ([0, 2, 5], None, 6, [0, 2, 5]),
        ([1], 1, 6, [1]),
    ],
)
def test_choice_of_layers(
    layers: str | list[int], n_layers: int | None, available: int, chosen: list[int]
) -> None:
    assert choose_layers(layers, n_layers, available=available) == chosen


@pytest.mark.parametrize(
    ("layers", "n_layers", "message"),
    [
        ("first", 7, r"student\.n_layers = 7, but the teacher has 6"),
        ([0, 6], None, r"student\.layers = \[0, 6\].*0 to 5"),
        ([-1, 2], None, r"student\.layers = \[-1, 2\]"),
        ([2, 0], None, "ascending"),
        ([1, 1], None, "each once"),
        ([], None, r"student\.layers = \[\]"),
        ([0, 1], 3, r"student\.n_layers = 3, but student\.layers lists 2"),
    ],
)
def test_impossible_choice_of_layers(
    layers: str | list[int], n_layers: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_layers(layers, n_layers, available=6)


def test_tokenizer_neither_truncates_nor_pads(teacher_dir: TeacherDir) -> None:
    teacher = load_teacher(str(teacher_dir("bert", head=True)))
    backend = teacher.tokenizer.backend_tokenizer
    assert len(backend.encode("ba be").ids) == 2
    assert len(backend.encode("ba be bi " * 10).ids) == 30


def test_room_for_positions(teacher_dir: TeacherDir) -> None:
    """RoBERTa's 34 positions are as good as BERT's 32: both were made for blocks of 32."""
    for family in ("bert", "distilbert", "roberta"):
        teacher = load_teacher(str(teacher_dir(family, head=True)))
        assert teacher.longest_block == 32
        with torch.no_grad():
            teacher.model(input_ids=torch.full((1, 32), 9))
        with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
            teacher.model(input_ids=torch.full((1, 33), 9))


def test_fingerprint_follows_the_weights(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    original = teacher_dir("bert", head=True)
    path = shutil.copytree(original, tmp_path / "other")
    before = load_teacher(str(original)).fingerprint
    assert load_teacher(str(path)).fingerprint == before
    weights = load_file(path / "model.safetensors")
    next(iter(weights.values())).flatten()[0] += 1
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert load_teacher(str(path)).fingerprint != before


def test_missing_teacher_is_named() -> None:
    with pytest.raises(
        WeightsError, match=r"teacher\.name = 'no/such/dir' cannot be loaded"
    ) as error:
        load_teacher("no/such/dir")
    assert "No such directory here" in str(error.value)


def test_truncated_weights_are_named(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "cut")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="complete Hugging Face model directory"):
        load_teacher(str(path))


def test_config_with_more_layers_than_weights_is_refused(
    teacher_dir: TeacherDir, tmp_path: Path
) -> None:
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "tall")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(WeightsError, match=r"lacks \d+ weights of the encoder.*layer\.4"):
        load_teacher(str(path))


def test_other_families_are_refused(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "gpt")
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match=r"type 'gpt2'.*bert, distilbert, roberta"):
        load_teacher(str(path))
