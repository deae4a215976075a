"""Which labels a pipeline takes for which others: of tokens, entities and documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from spacy.scorer import MISSING_VALUES
from spacy.training import Example

from spacy_distil.report.page import Matrix
from spacy_distil.report.predictions import align_entities, best_category

# (gold label, predicted label) to number of times.
Confusion = Counter[tuple[str, str]]

NONE = "none"
# Of more labels, those with most errors are shown.
MOST_LABELS = 20


def count_confusions(
    examples: Iterable[Example], categories: Sequence[str]
) -> dict[str, Confusion]:
    """Count confusions by the rules of `count_documents`.

    An entity that is right or has a wrong label has the boundaries of a gold entity. All others are
    confused with `NONE`.

    categories: exclusive categories; empty for none.
    RETURNS: confusions by `Column.counts`.
    """
    confusions = {name: Confusion() for name in ("pos", "tag", "ents", "cats")}
    for example in examples:
        confusions["pos"].update(_tags(example, "pos_"))
        confusions["tag"].update(_tags(example, "tag_"))
        confusions["ents"].update(_entities(example))
        gold = best_category(example.reference.cats, categories)
        predicted = best_category(example.predicted.cats, categories)
        if gold is not None and predicted is not None:
            confusions["cats"][gold, predicted] += 1
    return confusions


def _tags(example: Example, attribute: str) -> Iterator[tuple[str, str]]:
    """Pairs of tags of the tokens that align with one gold token."""
    x2y = example.alignment.x2y
    for token in example.predicted:
        if token.orth_.isspace() or x2y.lengths[token.i] != 1:
            continue
        gold = getattr(example.reference[int(x2y[token.i][0])], attribute)
        if gold not in MISSING_VALUES:
            yield gold, getattr(token, attribute) or NONE


def _entities(example: Example) -> Iterator[tuple[str, str]]:
    if not example.reference.has_annotation("ENT_IOB"):
        return
    gold = {(ent.start, ent.end): ent.label_ for ent in example.reference.ents}
    for predicted, start, end in align_entities(example):
        yield gold.pop((start, end), NONE), predicted
    for label in gold.values():
        yield label, NONE


def make_matrix(title: str, confusion: Confusion) -> Matrix:
    """Make a matrix of the labels with most errors, with `NONE` at the end."""
    errors = Counter[str]()
    for pair, n in confusion.items():
        for label in set(pair):
            errors[label] += n if pair[0] != pair[1] else 0
    labels = [label for label in errors if label != NONE]
    most = sorted(labels, key=lambda label: (-errors[label], label))[:MOST_LABELS]
    shown = sorted(most) + [NONE] * (NONE in errors)
    counts = [[confusion[row, column] for column in shown] for row in shown]
    n_errors = sum(n for (gold, predicted), n in confusion.items() if gold != predicted)
    n_shown = sum(sum(row) - row[i] for i, row in enumerate(counts))
    note = ""
    if len(labels) > len(most):
        note = (
            f"The {len(most)} of {len(labels)} labels with most errors. {n_errors - n_shown:,} "
            f"errors with other labels are not shown."
        )
    return Matrix(f"{title}: {n_errors:,} errors", shown, counts, note)
