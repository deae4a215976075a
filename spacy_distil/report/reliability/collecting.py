"""Collect what the pipes of a pipeline predict, beside the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spacy.attrs import IS_SPACE  # type: ignore[import-not-found]
from spacy.language import Language
from spacy.pipeline import Tagger, TextCategorizer
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.training import Example
from spacy.util import minibatch
from thinc.api import Model

from spacy_distil.ner.decoding import MISSING
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.report.reliability.evidence import Answers, Choices, Entities, Evidence
from spacy_distil.report.reliability.judged import Judged
from spacy_distil.softmax import SMALLEST_PROBABILITY, is_softmax, log_probabilities

# A true label that the pipe lacks.
_UNKNOWN = -2


@dataclass
class Collected:
    """Predictions of the pipes for documents, beside the truth.

    n_docs: number of documents.
    evidence: by name of the pipe.
    skipped: of each other trainable pipe, why it has none.
    left_out: number of annotated tokens that could not be compared, by name of the pipe.
    """

    n_docs: int
    evidence: dict[str, Evidence]
    skipped: dict[str, str]
    left_out: dict[str, int]


def collect(nlp: Language, examples: Iterable[Example], batch_size: int) -> Collected:
    """Predict documents pipe by pipe, and keep the logits beside the truth."""
    parts: dict[str, list[Evidence]] = {}
    left_out: Counter[str] = Counter()
    n_docs = 0
    for batch in _read(nlp, examples, batch_size):
        n_docs += batch.n_docs
        left_out.update(batch.left_out)
        for name, own in batch.evidence.items():
            parts.setdefault(name, []).append(own)
    skipped = {}
    for name, pipe in nlp.pipeline:
        if name in parts or not (
            getattr(pipe, "is_trainable", False) and getattr(pipe, "labels", ())
        ):
            continue
        if _reader_of(pipe) is None:
            skipped[name] = "no temperature fits its kind of model"
        elif left_out[name]:
            skipped[name] = "none of its annotation can be compared with predictions"
        else:
            skipped[name] = "the documents have no annotation for it"
    evidence = {name: type(own[0]).join(own) for name, own in parts.items()}
    return Collected(n_docs, evidence, skipped, dict(left_out))


def judge(nlp: Language, examples: Iterable[Example], batch_size: int) -> dict[str, Judged]:
    """Predict documents, and say which predictions are right and how probable they are.

    RETURNS: by name of the pipe. Pipes without probabilities or without annotation are left out.
    """
    parts: dict[str, list[Judged]] = {}
    for batch in _read(nlp, examples, batch_size):
        for name, own in batch.evidence.items():
            parts.setdefault(name, []).append(own.judge())
    return {name: Judged.join(own) for name, own in parts.items()}


@dataclass
class _Batch:
    n_docs: int
    evidence: dict[str, Evidence]
    left_out: dict[str, int]


def _read(nlp: Language, examples: Iterable[Example], batch_size: int) -> Iterator[_Batch]:
    readers = {name: reader for name, pipe in nlp.pipeline if (reader := _reader_of(pipe))}
    start = 0
    for batch in minibatch(examples, batch_size):
        docs = [example.predicted for example in batch]
        found = _Batch(len(batch), {}, {})
        for name, pipe in nlp.pipeline:
            if name in readers:
                paired = _with_predicted(batch, docs)
                own, found.left_out[name] = readers[name](pipe, paired, start)
                if own is not None:
                    found.evidence[name] = own
            docs = list(pipe.pipe(docs)) if hasattr(pipe, "pipe") else [pipe(doc) for doc in docs]
        yield found
        start += len(batch)


def _with_predicted(batch: Sequence[Example], docs: Sequence[Any]) -> list[Example]:
    return [
        example if example.predicted is doc else Example(doc, example.reference)
        for example, doc in zip(batch, docs, strict=True)
    ]


# Takes the number of the first document. Returns None without evidence, and the number of annotated
# tokens that are left out.
Reader = Callable[[Any, list[Example], int], tuple[Evidence | None, int]]


def _reader_of(pipe: Any) -> Reader | None:
    """Return the function that reads the evidence of a pipe, None if it has none."""
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model):
        return None
    if isinstance(pipe, TextCategorizer):
        if logit_layer(pipe) is None:
            return None
        return _read_answers if isinstance(pipe, MultiLabel_TextCategorizer) else _read_category
    if not is_softmax(model):
        return None
    if isinstance(pipe, DistilNER):
        return _read_entities
    # An edit tree of a lemmatizer is not right or wrong: others may make the same lemma.
    return _read_tokens if isinstance(pipe, Tagger) else None


def _read_tokens(pipe: Any, examples: list[Example], start: int) -> tuple[Evidence | None, int]:
    """Read the tokens that are tokens of the annotation, and have a label that the pipe knows."""
    lengths = [len(example.predicted) for example in examples]
    docs = np.repeat(np.arange(start, start + len(examples)), lengths)
    examples = [example for example in examples if len(example.predicted)]
    if not examples:
        return None, 0
    ops = pipe.model.ops
    logs = ops.to_numpy(
        ops.flatten(log_probabilities(pipe.model, [example.predicted for example in examples]))
    )
    truth = np.concatenate([_labels_of(pipe, example) for example in examples])
    alike = np.concatenate([_alike(example) for example in examples])
    rows = np.flatnonzero((truth >= 0) & alike)
    n_left_out = int(((truth != MISSING) & ~((truth >= 0) & alike)).sum())
    if not len(rows):
        return None, n_left_out
    return Choices("tokens", logs[rows], truth[rows], docs[rows]), n_left_out


def _labels_of(pipe: Any, example: Example) -> np.ndarray:
    """Return the numbers of the true labels, (n_tokens,): MISSING without annotation, _UNKNOWN if
    the pipe lacks the label.
    """
    if type(pipe) is Tagger:
        numbers = {label: i for i, label in enumerate(pipe.labels)}
        tags = example.get_aligned("TAG", as_string=True)
        return np.array([numbers.get(t, _UNKNOWN) if t else MISSING for t in tags], dtype=np.int64)
    ops = pipe.model.ops
    # The gradient of zeros is -1 for the true label. Its class knows how to find it.
    zeros = ops.alloc2f(len(example.predicted), len(pipe.labels))
    gradient = ops.to_numpy(pipe.get_loss([example], [zeros])[1][0])
    return np.where(gradient.min(axis=1) < 0, gradient.argmin(axis=1), MISSING)


def _alike(example: Example) -> np.ndarray:
    """Find the tokens that are one token of the annotation, (n_tokens,)."""
    x2y, y2x = example.alignment.x2y, example.alignment.y2x
    single = x2y.lengths == 1
    others = np.zeros(len(single), dtype=np.int64)
    others[single] = y2x.lengths[x2y.data[np.cumsum(x2y.lengths)[single] - 1]]
    return np.asarray(single & (others == 1))


def _read_entities(
    pipe: DistilNER, examples: list[Example], start: int
) -> tuple[Evidence | None, int]:
    """Read the documents whose entities are all known, and possible for the pipe."""
    numbers = [
        i
        for i, example in enumerate(examples)
        if len(example.predicted) and example.reference.has_annotation("ENT_IOB")
    ]
    possible = [i for i in numbers if _is_possible(pipe, examples[i])]
    kept = [examples[i] for i in possible]
    n_left_out = sum(len(examples[i].predicted) for i in {*numbers} - {*possible})
    batch = pipe.read([example.predicted for example in kept], keep_entities=False)
    if batch is None:
        return None, n_left_out
    return Entities([(batch, pipe.gold_tags(kept), start + np.array(possible))]), n_left_out


def _is_possible(pipe: DistilNER, example: Example) -> bool:
    if not {ent.label_ for ent in example.reference.ents} <= {*pipe.labels}:
        return False
    tags, spaces = pipe.gold_tags([example]), example.predicted.to_array(IS_SPACE) == 1
    if (tags[~spaces | (pipe.scheme == "BILUO")] == MISSING).any():
        return False
    ents = example.get_aligned_spans_y2x(example.reference.ents)
    return not any(token.is_sent_start for ent in ents for token in ent[1:])


def _read_category(
    pipe: TextCategorizer, examples: list[Example], start: int
) -> tuple[Evidence | None, int]:
    probs, truth, known = _read_cats(pipe, examples)
    rows = np.flatnonzero((truth & known).any(axis=1))
    if not len(rows):
        return None, 0
    logs = np.log(np.maximum(probs[rows], SMALLEST_PROBABILITY))
    return Choices("documents", logs, truth[rows].argmax(axis=1), start + rows), 0


def _read_answers(
    pipe: TextCategorizer, examples: list[Example], start: int
) -> tuple[Evidence | None, int]:
    probs, truth, known = _read_cats(pipe, examples)
    if not known.any():
        return None, 0
    probs = np.clip(probs.astype("d"), SMALLEST_PROBABILITY, 1 - 1e-16)
    docs = np.arange(start, start + len(examples))
    return Answers(np.log(probs) - np.log1p(-probs), truth, known, docs), 0


def _read_cats(pipe: TextCategorizer, examples: list[Example]) -> tuple[np.ndarray, ...]:
    """RETURNS (probabilities, truth, known): (n_docs, n_labels) each, the last two bool."""
    docs = [example.predicted for example in examples]
    probs = pipe.model.ops.to_numpy(pipe.predict(docs))
    cats = [example.reference.cats for example in examples]
    known = np.array([[label in own for label in pipe.labels] for own in cats], dtype=bool)
    truth = np.array([[own.get(label, 0) >= 0.5 for label in pipe.labels] for own in cats])
    return probs, truth, known


def logit_layer(pipe: TextCategorizer) -> Model | None:
    """Return the layer whose weights make the logits of a text classifier, if it has one."""
    if not pipe.model.has_ref("output_layer"):
        return None
    layer = pipe.model.get_ref("output_layer")
    return layer if layer.name in ("softmax", "linear") and layer.has_param("W") else None
