"""The component `distil_ner`: entities from a tag per token, decoded a batch at a time.

It replaces spaCy's `ner`, with the same annotations, labels, training data and scores. `ner` steps
through a document with a small network. The model of `distil_ner` is a linear layer over the token
vectors, and everything after it is array work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from spacy.attrs import (  # type: ignore[import-not-found]
    ENT_IOB,
    IS_SPACE,
    SENT_START,
)
from spacy.errors import Errors
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.tokens import Doc, Span
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import check_lexeme_norms
from spacy.vocab import Vocab
from thinc.api import Config, Model, Optimizer, set_dropout_rate
from thinc.layers.resizable import resize_linear_weighted
from thinc.types import Floats2d

from spacy_distil.engines.files import check_folder
from spacy_distil.errors import ConfigError, DistilError
from spacy_distil.ner.decoding import MISSING, doc_cuts, trim_edges
from spacy_distil.ner.schemes import (
    PREFIXES,
    SCHEMES,
    Scheme,
    decode_entities,
    from_biluo,
    n_tags,
    tag_names,
)
from spacy_distil.runs.digests import SUMS, write_sums
from spacy_distil.runs.files import atomic_contents

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

# Values of token.ent_iob.
_UNSET, _INSIDE, _BEGIN = 0, 1, 3
# First bias of the tags of a label that is added to a trained model: low enough not to change its
# predictions, high enough to be learned.
_NEW_LABEL_BIAS = -10.0


@Language.factory(
    "distil_ner",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type"],
    default_config={
        "model": DEFAULT_MODEL,
        "scheme": "BILUO",
        "scorer": {"@scorers": "spacy.ner_scorer.v1"},
    },
    default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0, "ents_per_type": None},
)
def make_distil_ner(
    nlp: Language,
    name: str,
    model: Model[list[Doc], list[Floats2d]],
    scheme: Scheme,
    scorer: Callable | None,
) -> DistilNER:
    """Construct the component.

    model: returns a score per tag for each token, such as `spacy.Tagger.v2`.
    scheme: how tags spell entities, "BILUO", "IOB2", "IOB1" or "IO". See `schemes`.
    """
    return DistilNER(nlp.vocab, model, name, scheme=scheme, scorer=scorer)


class DistilNER(TrainablePipe):
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
        scorer: Callable | None = None,
    ) -> None:
        if scheme not in SCHEMES:
            raise ConfigError(
                f"scheme = {scheme!r} of {name!r}: expected one of {', '.join(SCHEMES)}. (BIOES is "
                "BILUO with other letters.)"
            )
        super().__init__(vocab, model, name, labels=[])
        self.scheme: Scheme = scheme
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

    def predict(self, docs: Iterable[Doc]) -> list[np.ndarray]:
        """Predict the entities of docs.

        RETURNS: for each doc (n_entities, 3): start, end (exclusive) and number of the label.
        """
        docs = list(docs)
        lengths = [len(doc) for doc in docs]
        if not any(lengths):
            return [np.zeros((0, 3), dtype=np.int64) for _ in docs]
        self._check_vectors(docs)
        ops = self.model.ops
        # The retokenizer leaves a row too many in doc.tensor when it splits a token.
        rows = [row[:n] for row, n in zip(self.model.predict(docs), lengths, strict=True)]
        scores = ops.to_numpy(ops.flatten(rows))
        cuts, is_space, fixed = _constraints(docs, lengths)
        starts, ends, labels = decode_entities(
            scores, self.scheme, cuts, is_space=is_space, fixed=fixed
        )
        offsets = np.cumsum([0, *lengths])
        bounds = np.searchsorted(starts, offsets)
        entities = np.stack([starts, ends, labels], axis=1)
        entities[:, :2] -= np.repeat(offsets[:-1], np.diff(bounds))[:, None]
        return [entities[bounds[i] : bounds[i + 1]] for i in range(len(docs))]

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

    def set_annotations(self, docs: Iterable[Doc], predictions: Sequence[np.ndarray]) -> None:
        """Add entities to docs.

        predictions: as `predict` returns them.
        """
        labels = [self.vocab.strings.add(label) for label in self.labels]
        for doc, entities in zip(docs, predictions, strict=True):
            ents = [Span(doc, i, j, label=labels[k]) for i, j, k in entities.tolist()]
            iob = doc.to_array(ENT_IOB)
            if not _is_taken(iob).any():
                doc.set_ents(ents, default="outside")
                continue
            free = iob == _UNSET
            for i, j, _ in entities:
                free[i:j] = False
            outside = [doc[i : i + 1] for i in np.flatnonzero(free).tolist()]
            doc.set_ents(ents, outside=outside, default="unmodified")

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
        truths = self._gold_tags(examples)
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
        return self._loss(scores, self._gold_tags(examples))

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

    def _gold_tags(self, examples: Sequence[Example]) -> np.ndarray:
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

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Write model and labels into a directory, with digests. See `atomic_contents`."""
        own = {"cfg", "model", "vocab", SUMS}
        with atomic_contents(Path(path), own=own, last=SUMS) as new:
            super().to_disk(new, exclude=exclude)
            write_sums(new)

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> DistilNER:
        """Read what `to_disk` wrote. Raises WeightsError if a file has changed."""
        if "model" not in exclude:
            check_folder(Path(path))
        return super().from_disk(path, exclude=exclude)


def _find_labels(examples: Iterable[Example]) -> list[str]:
    """List the entity labels in the gold docs, sorted."""
    return sorted({ent.label_ for example in examples for ent in example.reference.ents})


def _constraints(docs: Sequence[Doc], lengths: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Find the constraints on the entities of a batch. See `decode_entities`.

    RETURNS (cuts, is_space, fixed): bool, (n_tokens + 1,), (n_tokens,) and (n_tokens,).
    """
    attrs = np.concatenate([doc.to_array([ENT_IOB, IS_SPACE, SENT_START]) for doc in docs])
    iob, is_space, sent_start = attrs.T
    cuts = doc_cuts(lengths)
    cuts[:-1] |= sent_start == 1
    return cuts, is_space == 1, _is_taken(iob)


def _is_taken(iob: np.ndarray) -> np.ndarray:
    """Find the tokens of entities, and blocked tokens, which spaCy marks as an empty entity."""
    return (iob == _INSIDE) | (iob == _BEGIN)
