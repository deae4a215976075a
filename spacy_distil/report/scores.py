"""Scores of one pipeline on annotated documents, with what each document adds to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.pipeline import MultiLabel_TextCategorizer, TextCategorizer
from spacy.scorer import MISSING_VALUES, Scorer
from spacy.training import Example

from spacy_distil.pipelines import count_bytes, load_pipeline
from spacy_distil.report.bootstrap import Counts, Floats, Metric
from spacy_distil.text.documents import read_examples


def precision(totals: Floats) -> Floats:
    """totals: shape (..., 3), true positives, false positives, false negatives. To (...)."""
    found = totals[..., 0] + totals[..., 1]
    return np.divide(totals[..., 0], found, out=np.zeros(found.shape), where=found > 0)


def recall(totals: Floats) -> Floats:
    """totals: shape (..., 3), true positives, false positives, false negatives. To (...)."""
    expected = totals[..., 0] + totals[..., 2]
    return np.divide(totals[..., 0], expected, out=np.zeros(expected.shape), where=expected > 0)


def f_score(totals: Floats) -> Floats:
    """totals: shape (..., 3), true positives, false positives, false negatives. To (...)."""
    both = 2 * totals[..., 0] + totals[..., 1] + totals[..., 2]
    return np.divide(2 * totals[..., 0], both, out=np.zeros(both.shape), where=both > 0)


def macro_f_score(totals: Floats) -> Floats:
    """totals: shape (..., n_labels, 3). To (...): the plain mean of the labels' F."""
    scores: Floats = f_score(totals).mean(axis=-1)
    return scores


@dataclass(frozen=True)
class Column:
    """A score that the tables show.

    key: its name in spaCy's scores.
    title: its heading.
    counts: which counts of `Scores.counts` it is computed from.
    metric: from totals of those counts.
    is_task: whether it stands for its task, in the retention table and in the plot.
    decimals: of the percentage. Two for tokens, of which there are many; one for the rest.
    """

    key: str
    title: str
    counts: str
    metric: Metric
    is_task: bool = True
    decimals: int = 1


COLUMNS: tuple[Column, ...] = (
    Column("pos_acc", "UPOS acc", "pos", f_score, decimals=2),
    Column("tag_acc", "XPOS acc", "tag", f_score, decimals=2),
    Column("ents_p", "NER P", "ents", precision, is_task=False),
    Column("ents_r", "NER R", "ents", recall, is_task=False),
    Column("ents_f", "NER F", "ents", f_score),
    Column("cats_macro_f", "textcat macro-F", "cats", macro_f_score),
)


@dataclass(frozen=True)
class Scores:
    """What one pipeline reached.

    values: `Column.key` to score (0 to 1); only of what the pipeline predicts and the gold has.
    counts: "pos", "tag" and "ents" to shape (n_docs, 3), "cats" to (n_docs, n_labels, 3): true
        positives, false positives and false negatives.
    full: everything that spaCy's scorer returned.
    n_parameters: weights of the pipeline.
    n_bytes: size on disk.
    n_docs, n_words: what was scored, in documents and spaCy tokens.
    """

    values: dict[str, float]
    counts: dict[str, Counts]
    full: dict[str, Any]
    n_parameters: int
    n_bytes: int
    n_docs: int
    n_words: int


def score_pipeline(pipeline: str, test: Path, *, batch_size: int = 256, limit: int = 0) -> Scores:
    """Load a pipeline and score it with spaCy's scorer, on the device that it picks.

    pipeline: path or package name.
    test, limit: see `read_examples`.
    batch_size: documents at a time.
    """
    nlp = load_pipeline(pipeline)
    examples = read_examples(nlp, test, limit=limit)
    keeper = _KeepingScorer(nlp)
    full = nlp.evaluate(examples, scorer=keeper, batch_size=batch_size)
    # Timed with the documents' creation and on whatever device: the speed table has the real one.
    full.pop("speed")
    counts = count_documents(nlp, keeper.examples)
    values = {
        column.key: full[column.key]
        for column in COLUMNS
        if full.get(column.key) is not None and has_gold(keeper.examples, column.counts)
    }
    return Scores(
        values=values,
        counts={name: array for name, array in counts.items() if _agrees(name, array, values)},
        full=full,
        n_parameters=count_parameters(nlp),
        n_bytes=count_bytes(nlp.path),
        n_docs=len(keeper.examples),
        n_words=sum(len(example.predicted) for example in keeper.examples),
    )


class _KeepingScorer(Scorer):
    """spaCy's scorer, which keeps the examples with their predictions."""

    examples: list[Example]

    def score(self, examples: Iterable[Example], *, per_component: bool = False) -> dict[str, Any]:
        self.examples = list(examples)
        return super().score(self.examples, per_component=per_component)


def has_gold(examples: Sequence[Example], counts: str) -> bool:
    """Whether anything is annotated. spaCy's scorer gives 0 for categories that are not."""
    return counts != "cats" or any(example.reference.cats for example in examples)


def _agrees(name: str, counts: Counts, values: dict[str, float]) -> bool:
    """Whether the documents' counts add up to spaCy's scores.

    A pipe may bring a scorer of its own: then counts made by spaCy's rules say nothing about how
    far its score may move.
    """
    columns = [column for column in COLUMNS if column.counts == name and column.key in values]
    totals = counts.sum(axis=0).astype(np.float64)
    return all(abs(float(c.metric(totals)) - values[c.key]) < 1e-6 for c in columns)


def count_documents(nlp: Language, examples: Sequence[Example]) -> dict[str, Counts]:
    """True positives, false positives and false negatives by document, as spaCy counts them.

    RETURNS: "pos", "tag" and "ents" to shape (n_docs, 3), and "cats" to (n_docs, n_labels, 3)
        where the pipeline has a text categorizer.
    """
    counts = {
        "pos": np.array([_count_attribute(example, "pos") for example in examples]),
        "tag": np.array([_count_attribute(example, "tag") for example in examples]),
        "ents": np.array([_count_entities(example) for example in examples]),
    }
    textcats = [pipe for _, pipe in nlp.pipeline if isinstance(pipe, TextCategorizer)]
    if textcats and textcats[-1].labels:
        count = _category_counter(textcats[-1])
        counts["cats"] = np.array([count(example) for example in examples])
    return counts


def _count_attribute(example: Example, attribute: str) -> tuple[int, int, int]:
    """As `Scorer.score_token_attr`: a token counts where it aligns with one gold token."""
    gold = {
        (token.i, value)
        for token in example.reference
        if (value := getattr(token, attribute)) not in MISSING_VALUES
    }
    annotated = {i for i, _ in gold}
    x2y = example.alignment.x2y
    found = {
        (i, getattr(token, attribute))
        for token in example.predicted
        if not token.orth_.isspace()
        and x2y.lengths[token.i] == 1
        and (i := int(x2y[token.i][0])) in annotated
    }
    return len(found & gold), len(found - gold), len(gold - found)


def _count_entities(example: Example) -> tuple[int, int, int]:
    """As `get_ner_prf`: what is predicted over tokens without annotation is not judged."""
    if not example.reference.has_annotation("ENT_IOB"):
        return 0, 0, 0
    gold = {(ent.label_, ent.start, ent.end) for ent in example.reference.ents}
    hits = alarms = 0
    for ent in example.predicted.ents:
        aligned = example.alignment.x2y[ent.start : ent.end]
        if not len(aligned):
            continue
        start, end = int(aligned[0]), int(aligned[-1]) + 1
        if any(token.ent_iob == 0 for token in example.reference[start:end]):
            continue
        if (ent.label_, start, end) in gold:
            gold.remove((ent.label_, start, end))
            hits += 1
        else:
            alarms += 1
    return hits, alarms, len(gold)


def _category_counter(textcat: TextCategorizer) -> Callable[[Example], Counts]:
    """As `Scorer.score_cats`: the best label where they exclude each other, else a threshold."""
    labels = sorted(textcat.labels)
    if isinstance(textcat, MultiLabel_TextCategorizer):
        threshold = textcat.cfg.get("threshold")
        threshold = 0.5 if threshold is None else threshold
        return lambda example: _count_categories(example, labels, threshold)
    return lambda example: _count_category(example, labels)


def _count_categories(example: Example, labels: Sequence[str], threshold: float) -> Counts:
    counts = np.zeros((len(labels), 3), dtype=np.int64)
    for i, label in enumerate(labels):
        gold = example.reference.cats.get(label)
        if gold is None:
            continue
        found = example.predicted.cats.get(label, 0.0) >= threshold
        counts[i] = found and gold > 0, found and gold == 0, not found and gold > 0
    return counts


def _count_category(example: Example, labels: Sequence[str]) -> Counts:
    counts = np.zeros((len(labels), 3), dtype=np.int64)
    gold, found = (
        max(cats, key=lambda label: cats[label]) if cats else None
        for cats in (
            {label: doc.cats[label] for label in doc.cats if label in labels}
            for doc in (example.reference, example.predicted)
        )
    )
    if gold is not None and gold == found:
        counts[labels.index(gold), 0] += 1
        return counts
    if found is not None:
        counts[labels.index(found), 1] += 1
    if gold is not None:
        counts[labels.index(gold), 2] += 1
    return counts


def count_parameters(nlp: Language) -> int:
    """Weights of all pipes: thinc's, and those that a model's shims hold for it.

    A shim counts through its `n_parameters`, and a thinc PyTorchShim through its torch module.
    Static vectors are a table of the vocab, not weights, and are not counted.
    """
    nodes = {
        id(node): node
        for _, pipe in nlp.pipeline
        if hasattr(pipe, "model") and hasattr(pipe.model, "walk")
        for node in pipe.model.walk()
    }
    shims = {id(shim): shim for node in nodes.values() for shim in node.shims}
    own = sum(
        node.get_param(name).size
        for node in nodes.values()
        for name in node.param_names
        if node.has_param(name)
    )
    return int(own) + sum(_count_shim(shim) for shim in shims.values())


def _count_shim(shim: Any) -> int:
    count = getattr(shim, "n_parameters", None)
    if isinstance(count, int):
        return count
    module = getattr(shim, "_model", None)
    if module is None or not hasattr(module, "parameters"):
        return 0
    return sum(parameter.numel() for parameter in module.parameters())
