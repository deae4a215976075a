"""The model card of a distilled or adapted encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from spacy_distil.cli.configs import adapt_config, encoder_config
from spacy_distil.distillation.encoder.card import student_card
from spacy_distil.distillation.encoder.config import load_config
from spacy_distil.distillation.encoder.corpus import Corpus, Mixture, Source
from spacy_distil.students.licence import Licence
from spacy_distil.students.shapes import choose_shape
from spacy_distil.students.teachers import Teacher, load_teacher

TeacherDir = Callable[..., Path]
UNKNOWN = Licence({})
SOURCES = {  # without blocks, which the card does not read
    "train": Source([("text/a|b.txt", 12345), ("text/c.txt", 6)], 1200, 150000, "f1f1"),
    "dev": Source([("text/d.txt", 7)], 20, 2500, "d2d2"),
}
SCORES = {"soft_targets": 1.23456, "total": 7.0, "student_accuracy": 0.4567}


@pytest.fixture
def teacher(teacher_dir: TeacherDir) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


def make_card(
    teacher: Teacher,
    tmp_path: Path,
    overrides: dict[str, Any] | None = None,
    *,
    licence: Licence = UNKNOWN,
    scores: dict[str, float] = SCORES,
    config: dict[str, Any] | None = None,
    corpus: Corpus | None = None,
) -> str:
    path = tmp_path / "distil.cfg"
    path.write_text(encoder_config())
    settings = load_config(config or path, {"teacher.name": teacher.name, **(overrides or {})})
    student = settings.student
    shape = choose_shape(
        teacher.model.config,
        student.layers,
        student.n_layers,
        heads=student.heads,
        ffn=student.ffn,
        width=student.width,
    )
    return student_card(
        settings,
        teacher=teacher,
        licence=licence,
        shape=shape,
        n_parameters=1234,
        corpus=corpus or Corpus(Mixture({}), Mixture({}), SOURCES),
        steps=100,
        scores=scores,
        device="2 x CPU",
    )


def metadata_of(card: str) -> dict[str, Any]:
    return ModelCard(card).data.to_dict()


def test_the_card_tells_how_the_student_was_made(teacher: Teacher, tmp_path: Path) -> None:
    overrides = {
        "student.layers": [0, 3],
        "student.ffn": 16,
        "teacher.revision": "v2",
        "training.learn_rate": 2e-3,
        "objectives.cosine.weight": 0,
    }
    card = make_card(teacher, tmp_path, overrides)
    for part in (
        "# 2-layer student of bert-head",
        f"Distilled with spacy-distil from `{teacher.name}`. It started from its layers 0, 3 (0 is "
        "the lowest), of which the most important parts were kept.",
        "| layers | 4 | 2 |",
        "| attention heads in a layer | 2 | 2 |",
        "| feed-forward neurons in a layer | 32 | 16 |",
        "| width | 16 | 16 |",
        f"| parameters | {teacher.model.num_parameters():,} | 1,234 |",
        f"a model of type bert, revision v2, fingerprint `{teacher.fingerprint}`",
        "| train | text/a\\|b.txt | 12,345 |",
        "| dev | text/d.txt | 7 |",
        "- train: 1,200 blocks of up to 512 pieces, 150,000 pieces; fingerprint `f1f1`",
        "- dev: 20 blocks of up to 512 pieces, 2,500 pieces; fingerprint `d2d2`",
        "| soft_targets | spacy-distil.SoftTargets.v1 | 5.0 | temperature 2.0, positions masked,",
        "Share of pieces masked: 0.15",
        "| all | soft_targets, masked_lm | 100 | 0.002 |",
        "100 steps of 128 blocks on 2 x CPU, seed 0.",
        "| loss: soft_targets | 1.2346 |",
        "| masked-LM accuracy of the student, % | 45.67 |",
    ):
        assert part in card
    assert "Cosine" not in card  # it was switched off


def test_stages_and_schedules(teacher: Teacher, tmp_path: Path) -> None:
    cosine = {
        "@distil_objectives": "spacy-distil.Cosine.v1",
        "weight": {"@schedules": "compounding.v1", "start": 1, "stop": 3, "compound": 1.5},
    }
    config = {
        "teacher": {"name": teacher.name},
        "corpus": {"train": ["text"]},
        "objectives": {
            "hidden": cosine,
            "mlm": {"@distil_objectives": "spacy-distil.MaskedLM.v1"},
        },
        "stages": {
            "first": {"objectives": ["hidden"], "share": 3, "learn_rate": 0.01},
            "then": {"objectives": ["hidden", "mlm"]},
        },
        "training": {
            "max_steps": 100,
            "batch_size": {"@schedules": "compounding.v1", "start": 2, "stop": 8, "compound": 2},
        },
    }
    card = make_card(teacher, tmp_path, config=config)
    for part in (
        "| hidden | spacy-distil.Cosine.v1 | compounding.v1 (start 1, stop 3, compound 1.5) |",
        "| mlm | spacy-distil.MaskedLM.v1 | default |",
        "| first | hidden | 75 | 0.01 |",
        "| then | hidden, mlm | 25 | 0.0005 |",
        "100 steps of compounding.v1 (start 2, stop 8, compound 2) blocks",
    ):
        assert part in card


def test_an_adapted_teacher_is_no_student(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    bare = load_teacher(str(teacher_dir("bert", head=False)))
    card = make_card(bare, tmp_path, config=adapt_config(bare.name, ["text"]), scores={})
    assert ", adapted\n" in card
    assert f"`{bare.name}`, trained further on text by masked language modelling" in card
    assert "It started as the whole of it. Its masked-LM head is new." in card
    assert "Nothing was held out." in card
    assert metadata_of(card)["tags"] == ["spacy-distil"]


def test_random_start_is_told(teacher: Teacher, tmp_path: Path) -> None:
    card = make_card(teacher, tmp_path, {"student.start": "random"})
    assert "It started from random weights." in card


def test_metadata_is_what_the_hub_reads(teacher: Teacher, tmp_path: Path) -> None:
    apache = Licence({"license": "apache-2.0"})
    data = metadata_of(make_card(teacher, tmp_path, licence=apache))
    assert data == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "tags": ["distillation", "spacy-distil"],
    }  # and no base model: a local directory means nothing to others
    hub = {"teacher.name": "bert-base-uncased"}
    data = metadata_of(make_card(teacher, tmp_path, hub))
    assert data["base_model"] == "bert-base-uncased"
    assert "license" not in data
