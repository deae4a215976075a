"""Labels of token classifiers as tags of entities."""

from __future__ import annotations

import numpy as np
import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.hugging_face.tags import MISSING, read_tags
from spacy_distil.ner.schemes import tag_names


@pytest.mark.parametrize(
    ("names", "scheme", "ambiguous"),
    [
        (["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], "IOB2", True),
        (["O", "B_PER", "I_PER"], "IOB2", True),
        # As in models that were trained on CoNLL-2003.
        (["B-LOC", "B-MISC", "I-LOC", "I-MISC", "I-PER", "O"], "IOB1", False),
        (["O", "I-PER", "I-LOC"], "IO", False),
        (["O", "PER", "LOC"], "IO", False),
        (["PER", "o", "geo-political"], "IO", False),
        (["O", "B-PER", "B-LOC"], "IOB2", False),
        (["O", "B-PER", "B-LOC", "I-LOC"], "IOB2", False),
        (["U-PER", "L-PER", "I-PER", "B-PER", "O"], "BILUO", False),
        (["O", "B-PER", "I-PER", "E-PER", "S-PER"], "BILUO", False),
        (["B-PER", "M-PER", "E-PER", "S-PER", "O", "S-LOC"], "BILUO", False),
        (["B-A-B", "I-A-B", "O"], "IOB2", True),
        # As the error advises for a label such as [PAD].
        (["B-UNUSED", "O", "B-PER", "I-PER"], "IOB2", False),
    ],
)
def test_schemes(names: list[str], scheme: str, ambiguous: bool) -> None:
    tags = read_tags(names)
    assert tags is not None
    assert tags.schemes[0] == scheme
    assert tags.is_ambiguous == ambiguous
    # Each label of the model is the output of one tag.
    columns = tags.columns(tags.schemes[0])
    assert sorted(columns[columns != MISSING]) == list(range(len(names)))
    letters = {"E": "L", "S": "U", "M": "I"}
    for tag, column in zip(tag_names(tags.labels, tags.schemes[0]), columns, strict=True):
        if column != MISSING:
            name = names[column].upper() if tag == "O" else names[column].replace("_", "-", 1)
            name = letters.get(name[0], name[0]) + name[1:] if name[1:2] == "-" else name
            assert tag in (name, f"I-{name}")


@pytest.mark.parametrize(
    "names",
    [
        ["O", "b-PER", "i-PER", "b-LOC"],
        ["O", "PER-B", "PER-I", "LOC-B"],
        ["o", "PER_B", "PER_I", "LOC_B"],
    ],
)
def test_other_spellings(names: list[str]) -> None:
    tags = read_tags(names)
    assert tags is not None
    assert tags.numbers == {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3}


def test_names_that_end_like_tags() -> None:
    """They are labels."""
    for names in (["O", "HEPATITIS_B", "VITAMIN_B"], ["O", "PER-B", "PER-I", "LOC"]):
        tags = read_tags(names)
        assert tags is not None
        assert tags.labels == tuple(names[1:])
        assert tags.schemes[0] == "IO"


@pytest.mark.parametrize("names", [["NOUN", "VERB"], ["NN", "B-X"], ["LABEL_0", "LABEL_1"]])
def test_other_labels(names: list[str]) -> None:
    assert read_tags(names) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["O", "B-PER", "I-PER", "[CLS]"], r"'\[CLS\]' are no tags.*'B-PER'.*B-UNUSED"),
        (["O", "B-PER", "I-PER", "S-PER"], "fit no scheme"),
        (["O", "L-PER", "E-PER", "S-PER"], "same tag: 'L-PER'"),
        (["O", "o", "B-PER"], "same tag: 'O'"),
        (["O"], "finds no entities"),
        (["B", "I", "O"], r"'B', 'I' are tags of entities without a label.*B-ENTITY"),
        (["O", "S", "B", "I", "E"], "tags of entities without a label"),
    ],
)
def test_labels_that_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_tags(names)


def test_a_scheme_of_the_user() -> None:
    tags = read_tags(["O", "B-PER", "I-PER"])
    assert tags is not None
    assert tags.check_scheme("IOB1") == "IOB1"
    with pytest.raises(ConfigError, match=r"scheme = 'BILUO'.*IOB2 or IOB1"):
        tags.check_scheme("BILUO")
    with pytest.raises(ConfigError, match="expected one of BILUO, IOB2, IOB1, IO"):
        tags.check_scheme("BIOES")


def test_starts_are_counted() -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    tags = read_tags(names)
    assert tags is not None
    sequence = ["I-PER", "I-PER", "B-PER", "O", "B-LOC", "I-LOC", "I-PER", "O", "O", "I-LOC"]
    # Of the entities that do not follow one of their own label, three begin with I.
    assert tags.count_starts(np.array([names.index(tag) for tag in sequence])) == (1, 3)
