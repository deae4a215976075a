"""The component `distil_ner`: entities from a tag per token, decoded a batch at a time.

It replaces spaCy's `ner`, with the same annotations, labels, training data and scores. `ner` steps
through a document with a small network. The model of `distil_ner` is a linear layer over the token
vectors, and everything after it is array work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from spacy.attrs import ENT_IOB, IS_SPACE  # type: ignore[import-not-found]
from spacy.errors import Errors
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import check_lexeme_norms
from spacy.vocab import Vocab
from thinc.api import Config, Model, Optimizer, set_dropout_rate
from thinc.layers.resizable import resize_linear_weighted
from thinc.types import Floats2d

from spacy_distil.engines.files import PipeFolder
from spacy_distil.errors import ConfigError, DistilError
from spacy_distil.ner.batch import UNSET, Batch, is_taken
from spacy_distil.ner.decoding import MISSING, doc_cuts, trim_edges
from spacy_distil.ner.schemes import (
    PREFIXES,
    SCHEMES,
    Scheme,
    from_biluo,
    n_tags,
    tag_names,
)
from spacy_distil.softmax import predict_logits

DEFAULT_MODEL = Config().from_str(
    """
[model]
@architectures = "spacy.Tagger.v2"

[model.tok2vec]
@architectures = "spacy.HashEmbedCNN.v2"
pretrained_vectors = null
width = 96
depth = 4
embed_size = 2000
window_size = 1
maxout_pieces = 3
subword_features = true
"""
)["model"]

# First bias of the tags of a label that is added to a trained model: low enough not to change its
# predictions, high enough to be learned.
_NEW_LABEL_BIAS = -10.0


@Language.factory(
    "distil_ner",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type"],
    default_config={
        "model": DEFAULT_MODEL,
        "scheme": "BILUO",
        "threshold": 0.0,
        "spans_key": None,
        "extension": None,
        "scorer": {"@scorers": "spacy.ner_scorer.v1"},
    },
    default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0, "ents_per_type": None},
)
def make_distil_ner(
    nlp: Language,
    name: str,
    model: Model[list[Doc], list[Floats2d]],
    scheme: Scheme,
    threshold: float,
    spans_key: str | None,
    extension: str | None,
    scorer: Callable | None,
) -> DistilNER:
    """Construct the component.

    model: returns a score per tag for each token, such as `spacy.Tagger.v2`.
    scheme: how tags spell entities, "BILUO", "IOB2", "IOB1" or "IO". See `schemes`.
    threshold: entities whose probability is lower are left out.
    spans_key: name of a span group, which gets the predicted entities, and their probabilities in
        `attrs["scores"]`.
    extension: name of an attribute `span._.NAME` for the probability of a predicted entity.
    """
    return DistilNER(
        nlp.vocab,
        model,
        name,
        scheme=scheme,
        threshold=threshold,
        spans_key=spans_key,
        extension=extension,
        scorer=scorer,
    )


@dataclass(frozen=True)
class Prediction:
    """The entities of a doc.

    entities: (n_entities, 3) int64: start, end (exclusive) and number of the label.
    probabilities: (n_entities,), if a setting asks for them.
    """

    entities: np.ndarray
    probabilities: np.ndarray | None = None


class Candidate(NamedTuple):
    """An entity that may be there.

    probability: of this entity.
    start, end: probabilities that any entity of this label begins, or ends, where this one does.
    """

    span: Span
    probability: float
    start: float
    end: float


class Reading(NamedTuple):
    """One way to divide a doc into entities, and its probability."""

    probability: float
    ents: tuple[Span, ...]


def check_threshold(name: str, threshold: float) -> float:
    """Return the threshold. Raises ConfigError if it is no probability."""
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold = {threshold!r} of {name!r}: expected a number from 0 to 1.")
    return threshold


def _start(pair: tuple[Span, Any]) -> int:
    return int(pair[0].start)


def _set_extension(name: str, extension: str) -> None:
    """Declare `span._.EXTENSION`, unless it is declared with a default."""
    if Span.has_extension(extension):
        _, method, getter, _ = Span.get_extension(extension)
        if method or getter:
            raise ConfigError(
                f"extension = {extension!r} of {name!r}: span._.{extension} is a function of "
                "another program. Choose another name."
            )
    else:
        Span.set_extension(extension, default=None)


class DistilNER(PipeFolder, TrainablePipe):
    """Named entity recognition by a tag per token.

    The model returns scores for each doc, (n_tokens, n_tags): probabilities in training, logits (or
    log-probabilities) in prediction. The best valid sequence of tags gives the entities.

    As with `ner`, entities and blocked tokens that a doc already has stay. No entity crosses the
    start of a sentence that is set, and none begins or ends on whitespace. In training, whitespace
    at the ends of entities is cut off, with a warning, and tokens without annotation do not count.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], list[Floats2d]],
        name: str = "ner",
        *,
        scheme: Scheme = "BILUO",
        threshold: float = 0.0,
        spans_key: str | None = None,
        extension: str | None = None,
        scorer: Callable | None = None,
    ) -> None:
        if scheme not in SCHEMES:
            raise ConfigError(
                f"scheme = {scheme!r} of {name!r}: expected one of {', '.join(SCHEMES)}. (BIOES is "
                "BILUO with other letters.)"
            )
        check_threshold(name, threshold)
        for setting, value in (("spans_key", spans_key), ("extension", extension)):
            if value == "":
                raise ConfigError(f"{setting} = '' of {name!r}: expected a name, or null.")
        super().__init__(vocab, model, name, labels=[], threshold=threshold)
        self.scheme: Scheme = scheme
        self.spans_key = spans_key
        self.extension = extension
        if extension is not None:
            _set_extension(name, extension)
        self.scorer = scorer
        self._has_warned = False  # of whitespace

    # Labels

    @property
    def labels(self) -> tuple[str, ...]:
        """The entity labels."""
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> tuple[str, ...]:
        """The labels as `spacy init labels` saves them and `initialize` takes them."""
        return self.labels

    def add_label(self, label: str) -> int:
        """Add a label, to a trained model too. RETURNS: 1, or 0 if the pipe has the label."""
        if not isinstance(label, str):
            raise ValueError(Errors.E187)
        if label in self.labels:
            return 0
        if not label or label.startswith("!"):
            raise ConfigError(
                f"An entity label of {self.name!r} must not be empty nor start with '!', "
                f"got {label!r}."
            )
        self.cfg["labels"].append(label)
        self.vocab.strings.add(label)
        self._resize()
        return 1

    def _resize(self) -> None:
        """Add outputs for new labels to an initialized model."""
        old, n_outputs = self.model.get_ref("output_layer"), self._n_tags
        if not old.has_param("W") or old.get_dim("nO") == n_outputs:
            return
        new = resize_linear_weighted(old, n_outputs, fill_defaults={"b": _NEW_LABEL_BIAS})
        nodes = [node for node in self.model.walk() if node is not old]
        for node in nodes:
            node.layers[:] = [new if layer is old else layer for layer in node.layers]
        for node in nodes:
            for name in node.ref_names:
                if node.maybe_get_ref(name) is old:
                    node.set_ref(name, new)

    @property
    def tag_names(self) -> list[str]:
        """The tags, in the order of the model's outputs."""
        return tag_names(self.labels, self.scheme)

    @property
    def _n_tags(self) -> int:
        return n_tags(len(self.labels), self.scheme)

    # Prediction

    def predict(self, docs: Iterable[Doc]) -> list[Prediction]:
        """Predict the entities of docs."""
        docs = list(docs)
        batch = self.read(docs, keep_entities=True)
        threshold = check_threshold(self.name, self.cfg["threshold"])  # others may set it
        has_probabilities = bool(threshold or self.spans_key or self.extension)
        if batch is None:
            none = Prediction(
                np.zeros((0, 3), dtype=np.int64), np.zeros(0) if has_probabilities else None
            )
            return [none for _ in docs]
        entities = batch.decode()
        probabilities = None
        if has_probabilities:
            probabilities = batch.probabilities(entities)
            kept = probabilities >= threshold
            entities, probabilities = entities[kept], probabilities[kept]
        rows = batch.by_doc(entities[:, 0])
        for own, offset in zip(rows, batch.bounds.tolist()[:-1], strict=True):
            entities[own, :2] -= offset
        return [
            Prediction(entities[own], None if probabilities is None else probabilities[own])
            for own in rows
        ]

    def read(self, docs: Sequence[Doc], *, keep_entities: bool) -> Batch | None:
        """Predict scores and find constraints, None if the docs have no tokens."""
        if not any(map(len, docs)):
            return None
        self._check_vectors(docs)
        ops = self.model.ops
        scores = ops.to_numpy(ops.flatten(predict_logits(self.model, docs)))
        return Batch.of(docs, scores, self.scheme, keep_entities=keep_entities)

    def _check_vectors(self, docs: Sequence[Doc]) -> None:
        """Raise ConfigError if the model listens for vectors that the docs do not have. spaCy's own
        listener would return zeros.
        """
        if all(doc.tensor is not None and doc.tensor.size for doc in docs if len(doc)):
            return
        for node in self.model.walk():
            if type(node) is Tok2VecListener:
                raise ConfigError(
                    f"Without its encoder, {self.name!r} would predict from zeros: it listens to "
                    f"{node.upstream_name!r} for vectors that the docs do not have. Load, enable "
                    "or source its encoder with it, and place it behind the encoder."
                )

    def set_annotations(self, docs: Iterable[Doc], predictions: Sequence[Prediction]) -> None:
        """Add entities to docs, and their probabilities as the settings say.

        predictions: as `predict` returns them.
        """
        labels = [self.vocab.strings.add(label) for label in self.labels]
        for doc, predicted in zip(docs, predictions, strict=True):
            entities = predicted.entities.tolist()
            ents = [Span(doc, i, j, label=labels[k]) for i, j, k in entities]
            if predicted.probabilities is not None:
                self._set_probabilities(doc, ents, predicted.probabilities)
            iob = doc.to_array(ENT_IOB)
            if not is_taken(iob).any():
                doc.set_ents(ents, default="outside")
                continue
            free = iob == UNSET
            for i, j, _ in entities:
                free[i:j] = False
            outside = [doc[i : i + 1] for i in np.flatnonzero(free).tolist()]
            doc.set_ents(ents, outside=outside, default="unmodified")

    def _set_probabilities(self, doc: Doc, ents: list[Span], probabilities: np.ndarray) -> None:
        present = {(ent.start, ent.end, ent.label) for ent in doc.ents}
        if self.spans_key:
            # Entities of another such pipe, or of this one before, are there to stay.
            old = doc.spans.get(self.spans_key, [])
            scores = getattr(old, "attrs", {}).get("scores", ())
            pairs = [
                (span, score)
                for span, score in zip(old, scores, strict=False)
                if (span.start, span.end, span.label) in present
            ]
            pairs = sorted([*pairs, *zip(ents, probabilities, strict=True)], key=_start)
            doc.spans[self.spans_key] = SpanGroup(
                doc,
                name=self.spans_key,
                attrs={"scores": np.array([score for _, score in pairs], dtype="f")},
                spans=[span for span, _ in pairs],
            )
        if self.extension:
            offsets = {(ent.start_char, ent.end_char) for ent in doc.ents}
            for key in [*doc.user_data]:
                if key[:2] == ("._.", self.extension) and key[2:] not in offsets:
                    del doc.user_data[key]  # of an entity that is gone
            for ent, probability in zip(ents, probabilities.tolist(), strict=True):
                ent._.set(self.extension, probability)

    # Probabilities on request

    def probabilities(self, docs: Iterable[Doc]) -> list[np.ndarray]:
        """Compute the probability of each entity that docs have, whoever has set it.

        docs: with token vectors, if the model listens for them: `nlp` has processed them.
        RETURNS: for each doc (n_entities,), in the order of `doc.ents`. It is 0 if the label is
            none of the pipe's.
        """
        docs = list(docs)
        batch = self.read(docs, keep_entities=False)
        if batch is None:
            return [np.zeros(0) for _ in docs]
        numbers = {label: i for i, label in enumerate(self.labels)}
        entities = np.array(
            [
                (ent.start + offset, ent.end + offset, numbers.get(ent.label_, -1))
                for doc, offset in zip(docs, batch.bounds.tolist()[:-1], strict=True)
                for ent in doc.ents
            ],
            dtype=np.int64,
        ).reshape(-1, 3)
        known = np.flatnonzero(entities[:, 2] >= 0)
        found = np.zeros(len(entities))
        found[known] = batch.probabilities(entities[known])
        return [found[own] for own in batch.by_doc(entities[:, 0])]

    def find_candidates(self, docs: Iterable[Doc], threshold: float = 0.1) -> list[list[Candidate]]:
        """Find all entities that are probable enough, whether they are predicted or not.

        They may overlap. Entities that the docs have do not count.

        docs: as for `probabilities`.
        threshold: the lowest probability, above 0.
        RETURNS: for each doc, in the order of the tokens.
        """
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold = {threshold!r}: expected a number above 0, at most 1.")
        docs = list(docs)
        batch = self.read(docs, keep_entities=False)
        if batch is None or not self.labels:
            return [[] for _ in docs]
        marginals, tokens = batch.marginals(), batch.tokens
        starts, ends, labels, probabilities = marginals.find_candidates(threshold)
        begins, stops = marginals.begins[starts, labels], marginals.ends[ends - 1, labels]
        first, last = tokens[starts], tokens[ends - 1]
        found = []
        for doc, rows, offset in zip(
            docs, batch.by_doc(first), batch.bounds.tolist()[:-1], strict=True
        ):
            columns = (first - offset, last + 1 - offset, labels, probabilities, begins, stops)
            found.append(
                [
                    Candidate(Span(doc, i, j, label=self.labels[k]), *own)
                    for i, j, k, *own in zip(
                        *(each[rows].tolist() for each in columns), strict=True
                    )
                ]
            )
        return found

    def n_best(self, docs: Iterable[Doc], n: int = 5) -> list[list[Reading]]:
        """Find the n most probable ways to divide each doc into entities, the best one first.

        docs: as for `probabilities`.
        """
        from spacy_distil.ner.n_best import n_best  # few programs need it

        if n < 1:
            raise ConfigError(f"n = {n!r}: expected at least 1.")
        docs = list(docs)
        batch = self.read(docs, keep_entities=False)
        if batch is None:
            return [[Reading(1.0, ())] for _ in docs]
        marginals, tokens = batch.marginals(), batch.tokens
        bounds = np.searchsorted(tokens, batch.bounds).tolist()
        found = []
        for doc, begin, end, offset in zip(
            docs, bounds[:-1], bounds[1:], batch.bounds.tolist()[:-1], strict=True
        ):
            readings = []
            for probability, entities in n_best(marginals, n, begin, end):
                places = [(int(tokens[i]), int(tokens[j - 1]) + 1, k) for i, j, k in entities]
                ents = (
                    Span(doc, i - offset, j - offset, label=self.labels[k]) for i, j, k in places
                )
                readings.append(Reading(probability, tuple(ents)))
            found.append(readings)
        return found

    def tag_probabilities(self, docs: Iterable[Doc]) -> list[np.ndarray]:
        """Compute the probability of each BILUO tag of each token, in valid sequences.

        docs: as for `probabilities`.
        RETURNS: for each doc (n_tokens, 1 + 4 * n_labels) float64: O, then B, I, L and U of each
            label. In other schemes than BILUO, rows of whitespace are NaN: it has no tag.
        """
        docs = list(docs)
        n_columns = 1 + 4 * len(self.labels)
        batch = self.read(docs, keep_entities=False)
        if batch is None:
            return [np.zeros((0, n_columns)) for _ in docs]
        probabilities = np.full((len(batch.scores), n_columns), np.nan)
        probabilities[batch.tokens] = batch.marginals().tags
        return np.split(probabilities, batch.bounds[1:-1])

    # Training

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Learn from a batch, and add its new labels, as `ner` does.

        losses: receives the cross-entropy, summed over tokens, under the component's name.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, "DistilNER.update")
        for label in _find_labels(examples):
            self.add_label(label)
        truths = self.gold_tags(examples)
        if not (truths != MISSING).any():
            return losses
        set_dropout_rate(self.model, drop)
        scores, backprop = self.model.begin_update([example.predicted for example in examples])
        loss, d_scores = self._loss(scores, truths)
        backprop(d_scores)
        if sgd not in (None, False):
            self.finish_update(sgd)
        losses[self.name] += loss
        return losses

    def get_loss(
        self, examples: Iterable[Example], scores: list[Floats2d]
    ) -> tuple[float, list[Floats2d]]:
        """Compute the cross-entropy, summed over the annotated tokens, and its gradient.

        scores: probabilities of the tags, (n_tokens, n_tags) for each doc.
        RETURNS (loss, d_logits): the latter is the gradient that thinc's softmax expects.
        """
        examples = list(examples)
        validate_examples(examples, "DistilNER.get_loss")
        return self._loss(scores, self.gold_tags(examples))

    def rehearse(self, *args: Any, **kwargs: Any) -> None:
        raise DistilError(
            f"{self.name!r} is a 'distil_ner', which cannot rehearse. "
            f"Leave it out with nlp.rehearse(..., exclude=[{self.name!r}])."
        )

    def _loss(self, scores: list[Floats2d], truths: np.ndarray) -> tuple[float, list[Floats2d]]:
        ops = self.model.ops
        rows = np.flatnonzero(truths != MISSING)
        annotated = ops.asarray_i(rows)
        gold = annotated, ops.asarray_i(truths[rows])
        probs = ops.flatten(scores)
        d_scores = ops.xp.zeros_like(probs)
        d_scores[annotated] = probs[annotated]
        d_scores[gold] -= 1
        # A probability in float32 may be zero.
        loss = float(-ops.xp.log(ops.xp.maximum(probs[gold], 1e-30)).sum())
        if not np.isfinite(loss):
            raise ValueError(Errors.E910.format(name=self.name))
        lengths = np.array([len(each) for each in scores], dtype="i")
        return loss, ops.unflatten(d_scores, lengths)

    def gold_tags(self, examples: Sequence[Example]) -> np.ndarray:
        """Return the gold tags of all tokens of the predicted docs, (n_tokens,), or MISSING.

        Whitespace at the ends of entities is Outside of them, as `predict` says.
        """
        biluo: dict[str | None, int] = {tag: i for i, tag in enumerate(tag_names(self.labels))}
        biluo[None] = MISSING
        tags = [tag for example in examples for tag in example.get_aligned_ner()]
        try:
            truths = np.array([biluo[tag] for tag in tags], dtype=np.int64)
        except KeyError as error:
            raise ConfigError(
                f"The labels of {self.name!r} are {list(self.labels)}, but the examples have a tag "
                f"{error}. Call add_label() first."
            ) from None
        spaces = [example.predicted.to_array(IS_SPACE) == 1 for example in examples]
        is_space = np.concatenate([*spaces, np.zeros(0, dtype=bool)])
        truths, n_trimmed = trim_edges(truths, is_space)
        if n_trimmed:
            self._warn_of_spaces(n_trimmed, len(examples))
        cuts = doc_cuts(len(example.predicted) for example in examples)
        return from_biluo(truths, self.scheme, cuts, is_space)

    def _warn_of_spaces(self, n_entities: int, n_docs: int) -> None:
        """Warn once that entities with whitespace at their ends are learned without it."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{n_entities:,} entities in {n_docs:,} docs for {self.name!r} begin or end with "
                "whitespace. It learns them without it, as it predicts them. Scores count such "
                "annotation as missed: remove the whitespace from the entities of your corpus.",
                stacklevel=2,
            )

    # Initialization

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: list[str] | None = None,  # spaCy validates it, and knows builtin types only
    ) -> None:
        """Prepare the model for the labels of the examples.

        get_examples: returns a representative sample of the training data.
        labels: the labels. None takes the labels of the examples.
        """
        validate_get_examples(get_examples, "DistilNER.initialize")
        check_lexeme_norms(self.vocab, "ner")
        if labels is None:
            labels = self._read_examples(get_examples())
        elif not isinstance(labels, (list, tuple)):
            raise ConfigError(
                f"The labels of {self.name!r} must be a list of strings, got {labels!r}. Labels "
                "that were saved for 'ner' have another format: run 'spacy init labels'."
            )
        for label in labels:
            self.add_label(label)
        expected = self._n_tags
        output = self.model.get_ref("output_layer")
        if (output.maybe_get_dim("nO") or expected) != expected:
            raise ConfigError(
                f"The model of {self.name!r} has nO = {output.get_dim('nO')}, but needs {expected} "
                f"outputs: 1 + {len(PREFIXES[self.scheme])} for each of {len(self.labels)} labels. "
                "Set nO to null."
            )
        sample = [example.predicted for example in islice(get_examples(), 10)]
        truths = [self.model.ops.alloc2f(len(doc), expected) for doc in sample]
        self.model.initialize(X=sample, Y=truths)

    def _read_examples(self, examples: Iterable[Example]) -> list[str]:
        """List the entity labels in the gold docs, sorted, and warn of whitespace in their ends."""
        labels, n_docs, n_trimmed = set(), 0, 0
        for example in examples:
            n_docs += 1
            for ent in example.reference.ents:
                labels.add(ent.label_)
                n_trimmed += ent[0].is_space or ent[-1].is_space
        if n_trimmed:
            self._warn_of_spaces(n_trimmed, n_docs)
        return sorted(labels)


def _find_labels(examples: Iterable[Example]) -> list[str]:
    """List the entity labels in the gold docs, sorted."""
    return sorted({ent.label_ for example in examples for ent in example.reference.ents})
