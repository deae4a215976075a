"""The component `distil_vectors`: a vector of each text, in `doc.vector`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from spacy.errors import Errors
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc, Span
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.vocab import Vocab
from thinc.api import Config, Model, Optimizer, set_dropout_rate
from thinc.types import Floats2d

from spacy_distil.engines.files import PipeFolder
from spacy_distil.errors import ConfigError
from spacy_distil.vectors.losses import in_batch_negatives, scored_pairs
from spacy_distil.vectors.pairs import VECTOR, Relation, read_relations

DEFAULT_MODEL = Config().from_str(
    """
[model]
@architectures = "spacy-distil.VectorsHead.v1"
pooling = "doc"
dense = []
activation = "tanh"
normalize = true

[model.tok2vec]
@architectures = "spacy-distil.Listener.v1"
docs = true
"""
)["model"]


@Language.factory(
    "distil_vectors",
    assigns=["doc.vector"],
    default_config={
        "model": DEFAULT_MODEL,
        "temperature": 0.05,
        "dims": [],
        "scorer": {"@scorers": "spacy-distil.vectors_scorer.v1"},
    },
    default_score_weights={
        "vectors_mrr": 1.0,
        "vectors_spearman": 1.0,
        "vectors_agreement": 1.0,
        "vectors_recall_at_1": None,
    },
)
def make_distil_vectors(
    nlp: Language,
    name: str,
    model: Model[list[Doc], Floats2d],
    temperature: float,
    dims: list[int],
    scorer: Callable | None,
) -> DistilVectors:
    """Construct the component.

    model: returns a vector of each doc, such as `spacy-distil.VectorsHead.v1`.
    temperature: of the cosines, in training on pairs.
    dims: shorter vectors that are trained to be good by themselves: the first numbers of each
        vector (Kusupati et al. 2022, "Matryoshka Representation Learning", arXiv 2205.13147).
    """
    return DistilVectors(nlp.vocab, model, name, temperature=temperature, dims=dims, scorer=scorer)


class DistilVectors(PipeFolder, TrainablePipe):
    """A vector of each text, by spaCy's hooks: `doc.vector`, `span.vector` and their similarity.

    The vector is kept in `doc.user_data`, too. Hooks are functions, which spaCy does not serialize:
    `restore` sets them again, without any computation.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], Floats2d],
        name: str = "vectors",
        *,
        temperature: float = 0.05,
        dims: Sequence[int] = (),
        scorer: Callable | None = None,
    ) -> None:
        if not temperature > 0:
            raise ConfigError(
                f"temperature = {temperature!r} of {name!r}: expected a number above 0."
            )
        if any(n < 1 for n in dims):
            raise ConfigError(f"dims = {[*dims]} of {name!r}: expected numbers of at least 1.")
        super().__init__(vocab, model, name, temperature=temperature, dims=[*dims])
        self.scorer = scorer

    @property
    def dims(self) -> list[int]:
        """Widths of shorter vectors that are good by themselves."""
        return list(self.cfg["dims"])

    @property
    def width(self) -> int:
        """Width of the vectors."""
        layers = [node for node in self.model.get_ref("head").walk() if node.has_dim("nO")]
        return int((layers[-1] if layers else self.model.get_ref("tok2vec")).get_dim("nO"))

    # Prediction

    def predict(self, docs: Iterable[Doc]) -> Floats2d:
        """Compute the vectors of docs, (n_docs, width)."""
        docs = list(docs)
        if not docs:
            return self.model.ops.alloc2f(0, 0)
        return self.model.predict(docs)

    def set_annotations(self, docs: Iterable[Doc], vectors: Floats2d) -> None:
        """Set the hooks of docs and their spans, and keep the vectors in `doc.user_data`.

        vectors: as `predict` returns them.
        """
        for doc, vector in zip(docs, vectors, strict=True):
            doc.user_data[VECTOR] = vector.copy()
            self._set_hooks(doc)

    def restore(self, docs: Iterable[Doc]) -> list[Doc]:
        """Set the hooks of docs that were serialized after the pipe had run.

        RETURNS: the docs. Raises ConfigError for one without a vector.
        """
        docs = list(docs)
        for doc in docs:
            if VECTOR not in doc.user_data:
                raise ConfigError(
                    f"The doc that begins with {doc.text[:40]!r} has no vector of {self.name!r}. "
                    "Run the pipeline over it. A DocBin keeps vectors with store_user_data = True."
                )
            self._set_hooks(doc)
        return docs

    def _set_hooks(self, doc: Doc) -> None:
        doc.user_hooks["vector"] = _vector_of_doc
        doc.user_hooks["has_vector"] = _has_vector
        doc.user_hooks["vector_norm"] = _norm
        doc.user_hooks["similarity"] = _similarity
        doc.user_span_hooks["vector"] = partial(_vector_of_span, self)
        doc.user_span_hooks["has_vector"] = _has_vector
        doc.user_span_hooks["vector_norm"] = _norm
        doc.user_span_hooks["similarity"] = _similarity

    def encode_spans(self, spans: Sequence[Span]) -> Any:
        """Compute a vector of each span from the vectors of its tokens, (n_spans, width).

        Each is what a doc would have whose vector is the mean of these.
        """
        ops = self.model.ops
        means: list[Any] = []
        for span in spans:
            tokens: Any = span.doc.tensor[span.start : span.end]
            mean = tokens.mean(axis=0, keepdims=True) if len(span) else None
            means.append(ops.alloc2f(1, tokens.shape[1]) if mean is None else mean)
        return ops.to_numpy(self.model.get_ref("head").predict(means))

    # Training

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Learn from a batch with related texts, see `pairs`.

        losses: receives the loss, summed over texts and pairs, under the component's name.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, "DistilVectors.update")
        relations = read_relations(examples)
        if not relations:
            return losses
        set_dropout_rate(self.model, drop)
        vectors, backprop = self.model.begin_update([example.predicted for example in examples])
        loss, d_vectors = self.get_loss(examples, vectors)
        backprop(d_vectors)
        if sgd not in (None, False):
            self.finish_update(sgd)
        losses[self.name] += loss
        return losses

    def get_loss(self, examples: Iterable[Example], vectors: Any) -> tuple[float, Any]:
        """Compute the loss of related texts and its gradient.

        Texts of one group are to be more similar than texts of different groups
        (`losses.in_batch_negatives`); pairs with a score get it as their cosine
        (`losses.scored_pairs`). Each of `dims` adds the same loss of the shorter vectors.
        """
        examples = list(examples)
        xp = self.model.ops.xp
        relations = read_relations(examples)
        total, d_vectors = 0.0, xp.zeros_like(vectors)
        width = vectors.shape[1]
        for n in dict.fromkeys([width, *(min(n, width) for n in self.dims)]):
            loss, d_own = self._compare(vectors[:, :n], relations)
            total += loss
            d_vectors[:, :n] += d_own
        if not np.isfinite(total):
            raise ValueError(Errors.E910.format(name=self.name))
        return total, d_vectors

    def _compare(self, vectors: Any, relations: Sequence[Relation]) -> tuple[float, Any]:
        xp = self.model.ops.xp
        total, d_vectors = 0.0, xp.zeros_like(vectors)
        scored = [each for each in relations if each.score is not None]
        if scored:
            loss, d_own = scored_pairs(
                vectors,
                [(each.members[0], each.members[1]) for each in scored],
                [each.score for each in scored if each.score is not None],
                xp,
            )
            total, d_vectors = total + loss, d_vectors + d_own
        grouped = [
            (i, each.group) for each in relations if each.score is None for i in each.members
        ]
        if grouped:
            rows = [i for i, _ in grouped]
            loss, d_own = in_batch_negatives(
                vectors[rows],
                [group for _, group in grouped],
                xp,
                temperature=self.cfg["temperature"],
            )
            total += loss
            d_vectors[rows] += d_own
        return total, d_vectors

    # Initialization

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
    ) -> None:
        """Prepare the model."""
        validate_get_examples(get_examples, "DistilVectors.initialize")
        sample = [example.predicted for example in islice(get_examples(), 10)]
        self.model.initialize(X=sample)


# Hooks


def _vector_of_doc(doc: Doc) -> Any:
    return doc.user_data[VECTOR]


def _vector_of_span(pipe: DistilVectors, span: Span) -> Any:
    return pipe.encode_spans([span])[0]


def _has_vector(text: Doc | Span) -> bool:
    return len(text) > 0


def _norm(text: Any) -> float:
    return float(np.linalg.norm(text.vector))


def _similarity(text: Any, other: Any) -> float:
    """Compute the cosine with anything that has a vector; 0 if one of them is zero."""
    own, theirs = text.vector, other.vector
    # Not their vector_norm: with hooks, spaCy's for spans is the vector.
    norms = np.linalg.norm(own) * np.linalg.norm(theirs)
    return float(own @ theirs / norms) if norms else 0.0
