from __future__ import annotations

import random
from collections.abc import Sequence

import spacy
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.report.confusion import (
    MOST_LABELS,
    NONE,
    Confusion,
    count_confusions,
    make_matrix,
)
from spacy_distil.report.predictions import read_references
from spacy_distil.report.scores import count_documents, score_and_predict
from tests.report.stock_pipelines import Trained


def split(confusion: Confusion) -> tuple[int, int, int]:
    """Hits, false alarms and misses."""
    pairs = confusion.items()
    return (
        sum(n for (gold, predicted), n in pairs if gold == predicted),
        sum(n for (gold, predicted), n in pairs if gold != predicted != NONE),
        sum(n for (gold, predicted), n in pairs if predicted != gold != NONE),
    )


def test_confusions_agree_with_the_counts_of_the_scores(trained: Trained) -> None:
    _, predictions = score_and_predict(spacy.load(trained.full), trained.test)
    references = read_references(trained.test)
    examples = list(predictions.examples(references))
    labels = predictions.exclusive_categories
    assert labels == ["FOOD", "SPORT"]
    confusions = count_confusions(examples, labels)
    counts = count_documents(examples, predictions.categories)
    assert split(confusions["ents"]) == tuple(counts["ents"].sum(axis=0))
    assert split(confusions["cats"]) == tuple(counts["cats"].sum(axis=(0, 1)))
    for name in ("pos", "tag"):
        # Two predicted tokens of one gold token are two pairs here.
        hits, alarms, _ = counts[name].sum(axis=0)
        assert 0 <= split(confusions[name])[0] - hits <= 40
        assert 0 <= split(confusions[name])[1] - alarms <= 40
        assert {label for pair in confusions[name] for label in pair} <= {
            *("PROPN", "VERB", "DET", "NOUN", "PUNCT", "AUX"),
            *("NNP", "VBD", "DT", "NN", "VB", ".", "MD"),
        }


def test_entities_by_hand() -> None:
    def make(ents: Sequence[str]) -> Doc:
        return Doc(vocab, words=["a", "b", "c", "d"], ents=list(ents))

    vocab = spacy.blank("en").vocab
    example = Example(make(["B-X", "B-Y", "I-Y", "O"]), make(["B-Y", "B-Y", "O", "B-X"]))
    assert count_confusions([example], [])["ents"] == {
        ("Y", "X"): 1,
        (NONE, "Y"): 1,
        ("Y", NONE): 1,
        ("X", NONE): 1,
    }


def test_multilabel_categories_are_not_confused(trained: Trained) -> None:
    _, predictions = score_and_predict(spacy.load(trained.partial), trained.test)
    assert predictions.categories is not None
    assert predictions.exclusive_categories == []


def test_the_matrix_has_the_labels_with_most_errors() -> None:
    rng = random.Random(0)
    labels = [f"L{i:02}" for i in range(50)]
    confusion = Confusion()
    for _ in range(3000):
        gold = rng.choice(labels)
        confusion[gold, rng.choice([gold, gold, rng.choice([*labels, NONE])])] += 1
    matrix = make_matrix("student", confusion)
    assert len(matrix.labels) == MOST_LABELS + 1
    assert list(matrix.labels) == [*sorted(matrix.labels[:-1]), NONE]
    errors = {
        label: sum(n for pair, n in confusion.items() if label in pair and pair[0] != pair[1])
        for label in labels
    }
    least_shown = min(errors[label] for label in matrix.labels[:-1])
    assert all(errors[label] <= least_shown for label in set(labels) - set(matrix.labels))
    total = sum(n for (gold, predicted), n in confusion.items() if gold != predicted)
    shown = sum(n for row in matrix.counts for n in row) - sum(
        row[i] for i, row in enumerate(matrix.counts)
    )
    assert matrix.title == f"student: {total:,} errors"
    assert matrix.note == (
        f"The 20 of 50 labels with most errors. {total - shown:,} errors with other labels are "
        "not shown."
    )
    small = make_matrix("a", Confusion({("A", "A"): 3, ("A", "B"): 1}))
    assert (small.labels, small.counts, small.note) == (["A", "B"], [[3, 1], [0, 0]], "")
