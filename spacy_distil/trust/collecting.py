"""Collect what the pipes of a pipeline predict, beside the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from spacy_distil.softmax import SMALLEST_PROBABILITY, is_softmax, log_probabilities
from spacy_distil.trust.evidence import Answers, Choices, Entities, Evidence

# A true label that the pipe lacks.
_UNKNOWN = -2


@dataclass
class Collected:
    """Predictions of the pipes for documents, beside the truth.

    evidence: by name of the pipe.
    skipped: of each other trainable pipe, why it has none.
    left_out: number of annotated tokens that could not be compared, by name of the pipe.
    """

    evidence: dict[str, Evidence]
    skipped: dict[str, str]
    left_out: dict[str, int]


def collect(nlp: Language, examples: Iterable[Example], batch_size: int) -> Collected:
    """Predict documents pipe by pipe, and keep the logits beside the truth."""
    found: dict[str, list[Any]] = {}
    left_out: Counter[str] = Counter()
    readers = {name: reader for name, pipe in nlp.pipeline if (reader := _reader_of(pipe))}
    for batch in minibatch(examples, batch_size):
        docs = [example.predicted for example in batch]
        for name, pipe in nlp.pipeline:
            if name in readers:
                own, n_left_out = readers[name](pipe, _with_predicted(batch, docs))
                left_out[name] += n_left_out
                if own is not None:
                    found.setdefault(name, []).append(own)
            docs = list(pipe.pipe(docs)) if hasattr(pipe, "pipe") else [pipe(doc) for doc in docs]
    skipped = {}
    for name, pipe in nlp.pipeline:
        if name in found or not (
            getattr(pipe, "is_trainable", False) and getattr(pipe, "labels", ())
        ):
            continue
        if name not in readers:
            skipped[name] = "no temperature fits its kind of model"
        elif left_out[name]:
            skipped[name] = "none of its annotation can be compared with predictions"
        else:
            skipped[name] = "the documents have no annotation for it"
    evidence = {name: _JOIN[readers[name]](parts) for name, parts in found.items()}
    return Collected(evidence, skipped, dict(left_out))


def _with_predicted(batch: Sequence[Example], docs: Sequence[Any]) -> list[Example]:
    return [
        example if example.predicted is doc else Example(doc, example.reference)
        for example, doc in zip(batch, docs, strict=True)
    ]


# Returns the parts of the evidence, None if there is none, and how many predictions are left out.
Reader = Callable[[Any, list[Example]], tuple[Any, int]]


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


def _read_tokens(pipe: Any, examples: list[Example]) -> tuple[Any, int]:
    """Read the tokens that are tokens of the annotation, and have a label that the pipe knows."""
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
    return (logs[rows], truth[rows]) if len(rows) else None, n_left_out


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


def _read_entities(pipe: DistilNER, examples: list[Example]) -> tuple[Any, int]:
    """Read the documents whose entities are all known, and possible for the pipe."""
    annotated = [
        example
        for example in examples
        if len(example.predicted) and example.reference.has_annotation("ENT_IOB")
    ]
    kept = [example for example in annotated if _is_possible(pipe, example)]
    batch = pipe.read([example.predicted for example in kept], keep_entities=False)
    parts = None if batch is None else (batch, pipe.gold_tags(kept))
    return parts, sum(len(e.predicted) for e in annotated) - sum(len(e.predicted) for e in kept)


def _is_possible(pipe: DistilNER, example: Example) -> bool:
    if not {ent.label_ for ent in example.reference.ents} <= {*pipe.labels}:
        return False
    tags, spaces = pipe.gold_tags([example]), example.predicted.to_array(IS_SPACE) == 1
    if (tags[~spaces | (pipe.scheme == "BILUO")] == MISSING).any():
        return False
    ents = example.get_aligned_spans_y2x(example.reference.ents)
    return not any(token.is_sent_start for ent in ents for token in ent[1:])


def _read_category(pipe: TextCategorizer, examples: list[Example]) -> tuple[Any, int]:
    probs, truth, known = _read_cats(pipe, examples)
    rows = np.flatnonzero((truth & known).any(axis=1))
    if not len(rows):
        return None, 0
    return (np.log(np.maximum(probs[rows], SMALLEST_PROBABILITY)), truth[rows].argmax(axis=1)), 0


def _read_answers(pipe: TextCategorizer, examples: list[Example]) -> tuple[Any, int]:
    probs, truth, known = _read_cats(pipe, examples)
    if not known.any():
        return None, 0
    probs = np.clip(probs.astype("d"), SMALLEST_PROBABILITY, 1 - 1e-16)
    return (np.log(probs) - np.log1p(-probs), truth, known), 0


def _read_cats(pipe: TextCategorizer, examples: list[Example]) -> tuple[np.ndarray, ...]:
    """RETURNS (probabilities, truth, known): (n_docs, n_labels) each, the last two bool."""
    docs = [example.predicted for example in examples]
    probs = pipe.model.ops.to_numpy(pipe.model.predict(docs))
    cats = [example.reference.cats for example in examples]
    known = np.array([[label in own for label in pipe.labels] for own in cats], dtype=bool)
    truth = np.array([[own.get(label, 0) >= 0.5 for label in pipe.labels] for own in cats])
    return probs, truth, known


def _join_tokens(parts: list[Any]) -> Evidence:
    return Choices("tokens", *map(np.concatenate, zip(*parts, strict=True)))


def _join_category(parts: list[Any]) -> Evidence:
    return Choices("documents", *map(np.concatenate, zip(*parts, strict=True)))


def _join_answers(parts: list[Any]) -> Evidence:
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))


def _join_entities(parts: list[Any]) -> Evidence:
    return Entities(parts)


_JOIN: dict[Reader, Callable[[list[Any]], Evidence]] = {
    _read_tokens: _join_tokens,
    _read_entities: _join_entities,
    _read_category: _join_category,
    _read_answers: _join_answers,
}


def logit_layer(pipe: TextCategorizer) -> Model | None:
    """Return the layer whose weights make the logits of a text classifier, if it has one."""
    if not pipe.model.has_ref("output_layer"):
        return None
    layer = pipe.model.get_ref("output_layer")
    return layer if layer.name in ("softmax", "linear") and layer.has_param("W") else None
