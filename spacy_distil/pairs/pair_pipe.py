"""The component `distil_pair`: entailment, paraphrase, relevance of two texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from spacy.errors import Errors
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import minibatch
from spacy.vocab import Vocab
from thinc.api import Config, Model, Optimizer, set_dropout_rate
from thinc.types import Floats2d

from spacy_distil.encoding import Text
from spacy_distil.engines.files import PipeFolder
from spacy_distil.errors import ConfigError
from spacy_distil.pairs.other import add_extension, other_in, other_of, pairs_of
from spacy_distil.pairs.scoring import score_pairs

Output = Literal["classes", "probability", "number"]
# Pairs that are encoded together. They are sorted by length.
PAIRS_AT_ONCE = 256
DEFAULT_MODEL = Config().from_str(
    """
[model]
@architectures = "spacy-distil.PairHead.v1"
hidden = "tanh"
join = "mean"

[model.tok2vec]
@architectures = "spacy-distil.Listener.v1"
pairs = true
"""
)["model"]


@Language.factory(
    "distil_pair",
    assigns=["doc.cats"],
    default_config={
        "model": DEFAULT_MODEL,
        "output": "classes",
        "other": "other",
        "scorer": {"@scorers": "spacy-distil.pair_scorer.v1"},
    },
    default_score_weights={
        "pair_score": 1.0,
        "pair_acc": None,
        "pair_macro_f": None,
        "pair_f_per_type": None,
        "pair_spearman": None,
        "pair_pearson": None,
    },
)
def make_distil_pair(
    nlp: Language,
    name: str,
    model: Model[Sequence[tuple[Text, Text]], Floats2d],
    output: Output,
    other: str,
    scorer: Callable | None,
) -> DistilPair:
    """Construct the component.

    model: returns logits of pairs of texts, such as `spacy-distil.PairHead.v1`.
    output: "classes" that exclude each other, one "probability", or one "number" of any size.
    other: the extension by which a doc names the other text of its pair: `doc._.other`.
    """
    return DistilPair(nlp.vocab, model, name, output=output, other=other, scorer=scorer)


class DistilPair(PipeFolder, TrainablePipe):
    """Classes or a score of two texts, which the encoder reads together.

    `classify` takes pairs of docs or strings. In a pipeline, the pipe sets `doc.cats` of the docs
    that name another text in `doc._.other`.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model[Sequence[tuple[Text, Text]], Floats2d],
        name: str = "pair",
        *,
        output: Output = "classes",
        other: str = "other",
        scorer: Callable | None = None,
    ) -> None:
        if output not in get_args(Output):
            expected = ", ".join(get_args(Output))
            raise ConfigError(f"output = {output!r} of {name!r}: expected one of {expected}.")
        add_extension(other)
        super().__init__(vocab, model, name, labels=[], output=output, other=other)
        self.scorer = scorer

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, or the name of the score."""
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> list[str]:
        """The labels, for `[initialize]`."""
        return list(self.labels)

    @property
    def output(self) -> Output:
        """The setting."""
        output: Output = self.cfg["output"]
        return output

    def add_label(self, label: str) -> int:
        """Add a label before the pipe is initialized. RETURNS: 1 if it is new, otherwise 0."""
        if not isinstance(label, str):
            raise ValueError(Errors.E187)
        if label in self.labels:
            return 0
        if self.model.get_ref("output_layer").has_param("W"):
            raise ConfigError(
                f"{self.name!r} has outputs for the labels {', '.join(self.labels)}. For the label "
                f"{label!r} too, add it before the pipe is initialized, and train."
            )
        if self.output != "classes" and self.labels:
            raise ConfigError(
                f"{self.name!r} with output = {self.output!r} has one label, {self.labels[0]!r}. "
                f"If {label!r} is of another pipe, name the labels of each in "
                f"[initialize.components.{self.name}] labels."
            )
        self.cfg["labels"] = [*self.labels, label]
        self.vocab.strings.add(label)
        return 1

    # Prediction

    def classify(self, pairs: Iterable[tuple[Text, Text]]) -> list[dict[str, float]]:
        """Classify pairs of texts.

        pairs: docs or strings. The order of the two is the one of the training data.
        RETURNS: for each pair the probability of each label, or its score.
        """
        found: list[dict[str, float]] = []
        for batch in minibatch(pairs, PAIRS_AT_ONCE):
            for row in self.predict_pairs(list(batch)).tolist():
                found.append(dict(zip(self.labels, row, strict=True)))
        return found

    def predict_pairs(self, pairs: Sequence[tuple[Text, Text]]) -> np.ndarray:
        """Compute probabilities or scores, (n_pairs, n_labels) float32."""
        ops = self.model.ops
        return ops.to_numpy(self.to_scores(ops.asarray2f(self.predict_logits(pairs))))

    def predict_logits(self, pairs: Sequence[tuple[Text, Text]]) -> np.ndarray:
        """Compute the outputs of the model, (n_pairs, n_labels) float32, a few pairs at a time."""
        for pair in pairs:
            whole = isinstance(pair, (tuple, list)) and len(pair) == 2
            if not whole or not all(isinstance(text, (str, Doc)) for text in pair):
                raise ConfigError(
                    f"{pair!r:.80} is no pair of texts: expected two docs or strings."
                )
        parts = [np.zeros((0, len(self.labels)), dtype="f")]
        for i in range(0, len(pairs), PAIRS_AT_ONCE):
            logits = self.model.predict(pairs[i : i + PAIRS_AT_ONCE])
            parts.append(self.model.ops.to_numpy(logits))
        return np.concatenate(parts)

    def to_scores(self, logits: Floats2d) -> Floats2d:
        """Turn the logits of the model into probabilities or scores."""
        if self.output == "classes":
            return self.model.ops.softmax(logits)
        return self.model.ops.sigmoid(logits) if self.output == "probability" else logits

    def predict(self, docs: Iterable[Doc]) -> np.ndarray:
        """Compute what `predict_pairs` does for the docs that name another text; others get NaN."""
        docs = list(docs)
        scores = np.full((len(docs), len(self.labels)), np.nan, dtype="f")
        found = pairs_of(docs, self.cfg["other"])
        if found:
            scores[[i for i, _ in found]] = self.predict_pairs([pair for _, pair in found])
        return scores

    def set_annotations(self, docs: Iterable[Doc], scores: np.ndarray) -> None:
        """Set `doc.cats` of the docs that name another text.

        scores: as `predict` returns them.
        """
        for doc, row in zip(docs, scores, strict=True):
            if not np.isnan(row).any():
                doc.cats = {**doc.cats, **dict(zip(self.labels, row.tolist(), strict=True))}

    # Training

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Learn from the examples that name another text and have labels.

        losses: receives the loss, summed over pairs, under the component's name.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, "DistilPair.update")
        examples = [example for example in examples if self.has_gold(example)]
        if not examples:
            return losses
        set_dropout_rate(self.model, drop)
        logits, backprop = self.model.begin_update(self.read_pairs(examples))
        loss, d_logits = self.get_loss(examples, logits)
        backprop(d_logits)
        if sgd not in (None, False):
            self.finish_update(sgd)
        losses[self.name] += loss
        return losses

    def has_gold(self, example: Example) -> bool:
        """Whether an example names another text and is annotated for the pipe: with one of its
        classes above 0, or with its score.
        """
        cats = [example.reference.cats[x] for x in self.labels if x in example.reference.cats]
        has_label = sum(cats) > 0 if self.output == "classes" else bool(cats)
        return has_label and other_in(example, self.cfg["other"]) is not None

    def read_pairs(self, examples: Sequence[Example]) -> list[tuple[Text, Text]]:
        """Return the pairs of examples that name another text."""
        name = self.cfg["other"]
        found = [(each.predicted, other_in(each, name)) for each in examples]
        return [(doc, other) for doc, other in found if other is not None]

    def get_loss(self, examples: Iterable[Example], logits: Any) -> tuple[float, Any]:
        """Compute the loss and its gradient: the cross-entropy of classes or of a probability, or
        half of the squared error of a number.
        """
        ops, xp = self.model.ops, self.model.ops.xp
        cats = [example.reference.cats for example in examples]
        rows = [[float(own.get(label, 0.0)) for label in self.labels] for own in cats]
        truth: Any = ops.asarray2f(rows)
        if self.output != "number" and not (truth.min() >= 0 and truth.max() <= 1):
            raise ValueError(
                f"{self.name!r} learns from doc.cats from {float(truth.min())} to "
                f'{float(truth.max())}: expected 0 to 1. For other numbers set output = "number".'
            )
        scores = self.to_scores(logits)
        difference = scores - truth
        if self.output == "number":
            loss = 0.5 * float((difference**2).sum())
        elif self.output == "probability":
            loss = float((xp.logaddexp(0, logits) - truth * logits).sum())
        else:
            largest = logits.max(axis=1, keepdims=True)
            sums = xp.log(xp.exp(logits - largest).sum(axis=1, keepdims=True)) + largest
            loss = float((truth * (sums - logits)).sum())
            # Annotation need not sum to 1.
            difference = truth.sum(axis=1, keepdims=True) * scores - truth
        if not np.isfinite(loss):
            raise ValueError(Errors.E910.format(name=self.name))
        return loss, difference

    def score(self, examples: Iterable[Example], **settings: Any) -> dict[str, Any]:
        """Score predictions. Docs that come without their other text, as `spacy evaluate` makes
        them, get it from the reference.
        """
        if self.scorer is None:
            return {}
        return self.scorer(self._complete(list(examples)), pipe=self, **settings)

    def _complete(self, examples: list[Example]) -> list[Example]:
        """Predict for the docs that do not name the text that their reference names."""
        name = self.cfg["other"]
        missing = [
            each
            for each in examples
            if other_of(each.reference, name) is not None
            and other_of(each.predicted, name) is None
            and each.predicted is not each.reference
        ]
        if missing:
            scores = self.predict_pairs(self.read_pairs(missing))
            self.set_annotations([each.predicted for each in missing], scores)
        return examples

    # Initialization

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Iterable[str] | None = None,
    ) -> None:
        """Find the labels, and prepare the model.

        labels: of the pipe; None to take them from `doc.cats` of the references that name another
            text.
        """
        validate_get_examples(get_examples, "DistilPair.initialize")
        if labels is not None:
            for label in labels:
                self.add_label(label)
        else:
            for example in get_examples():
                if other_in(example, self.cfg["other"]) is not None:
                    for label in example.reference.cats:
                        self.add_label(label)
        if len(self.labels) < (2 if self.output == "classes" else 1):
            named = f"doc._.{self.cfg['other']}"
            raise ConfigError(
                f"{self.name!r} has {len(self.labels)} labels, and output = {self.output!r} needs "
                f"{'2 or more' if self.output == 'classes' else 'one'}. They come from doc.cats of "
                f"references that name another text in {named}. 'spacy-distil.LabelledPairs.v1' "
                "reads both from JSON lines."
            )
        n_outputs = self.model.maybe_get_dim("nO")
        if n_outputs not in (None, len(self.labels)):
            raise ConfigError(
                f"{self.name!r} has {len(self.labels)} labels ({', '.join(self.labels)}), but its "
                f"model nO = {n_outputs}. Leave nO out, or name the labels in "
                f"[initialize.components.{self.name}] labels."
            )
        self.model.set_dim("nO", len(self.labels))
        self.model.initialize()


def make_pair_scorer() -> Callable[..., dict[str, Any]]:
    """Return the scorer of `distil_pair`."""
    return score_examples


def score_examples(
    examples: Iterable[Example], *, pipe: DistilPair, **settings: Any
) -> dict[str, Any]:
    """Score predicted `doc.cats` of the pipe's labels, see `score_pairs`."""
    examples = [example for example in examples if pipe.has_gold(example)]
    labels = pipe.labels
    truth, predicted = (
        np.array([[doc.cats.get(label, 0.0) for label in labels] for doc in docs], dtype=float)
        for docs in (
            [example.reference for example in examples],
            [example.predicted for example in examples],
        )
    )
    return score_pairs(truth, predicted, labels, is_exclusive=pipe.output == "classes")
