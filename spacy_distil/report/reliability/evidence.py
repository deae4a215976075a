"""Predictions of pipes beside the truth, at any temperature.

A temperature divides the logits of a pipe (Guo et al. 2017). The best class stays the best, and its
probability changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from spacy_distil.ner.batch import Batch
from spacy_distil.ner.decoding import OUTSIDE
from spacy_distil.report.reliability.judged import Judged

LOWEST, HIGHEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2


class Evidence(ABC):
    """Predictions of a pipe for documents whose truth is known.

    what: what is predicted, in the plural.
    n: number of tokens or documents with a truth. Whitespace without a vote does not count.
    """

    what: str

    @property
    @abstractmethod
    def n(self) -> int: ...

    @abstractmethod
    def fit(self) -> list[float]:
        """Find the temperatures with the lowest log loss, from LOWEST to HIGHEST."""

    @abstractmethod
    def judge(self, temperatures: Sequence[float] | None = None) -> Judged:
        """Say which predictions are right, and how probable they are.

        temperatures: as `fit` returns them; `None` for the ones that the pipe has.
        """

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Any]) -> Evidence:
        """Join the evidence of several batches, of this class."""


class Choices(Evidence):
    """One class of several, for each token or document."""

    def __init__(self, what: str, logits: np.ndarray, truth: np.ndarray, docs: np.ndarray) -> None:
        """logits: (n, n_classes). truth: (n,), number of the class. docs: (n,), of the document."""
        self.what = what
        self._logits = np.asarray(logits, dtype="d")
        self._truth = truth
        self._docs = docs

    @classmethod
    def join(cls, parts: Sequence[Choices]) -> Choices:
        return cls(
            parts[0].what,
            np.concatenate([part._logits for part in parts]),
            np.concatenate([part._truth for part in parts]),
            np.concatenate([part._docs for part in parts]),
        )

    @property
    def n(self) -> int:
        return len(self._truth)

    def fit(self) -> list[float]:
        return [minimize(self._log_loss)]

    def judge(self, temperatures: Sequence[float] | None = None) -> Judged:
        (temperature,) = temperatures or [1.0]
        logs = self._log_probs(temperature)
        probs = np.exp(logs)
        best = probs.argmax(axis=1)
        rows = np.arange(self.n)
        return Judged(
            what=self.what,
            docs=self._docs,
            confidence=probs[rows, best],
            correct=best == self._truth,
            squares=(probs**2).sum(axis=1) - 2 * probs[rows, self._truth] + 1,
            losses=-logs[rows, self._truth],
            loss_docs=self._docs,
            loss_counts=np.ones(self.n, dtype=np.int64),
        )

    def _log_probs(self, temperature: float) -> np.ndarray:
        logits = self._logits / temperature
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def _log_loss(self, temperature: float) -> float:
        return -float(self._log_probs(temperature)[np.arange(self.n), self._truth].mean())


class Answers(Evidence):
    """Yes or no to each category of a document. Each category has a temperature of its own."""

    what = "answers"

    def __init__(
        self, log_odds: np.ndarray, truth: np.ndarray, is_known: np.ndarray, docs: np.ndarray
    ) -> None:
        """log_odds: (n_docs, n_labels). truth, is_known: (n_docs, n_labels), bool. docs: (n_docs,),
        their numbers.
        """
        self._log_odds = np.asarray(log_odds, dtype="d")
        self._truth = truth
        self._is_known = is_known
        self._docs = docs

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        return cls(
            np.concatenate([part._log_odds for part in parts]),
            np.concatenate([part._truth for part in parts]),
            np.concatenate([part._is_known for part in parts]),
            np.concatenate([part._docs for part in parts]),
        )

    @property
    def n(self) -> int:
        return int(self._is_known.any(axis=1).sum())

    def fit(self) -> list[float]:
        columns = zip(self._log_odds.T, self._truth.T, self._is_known.T, strict=True)
        return [
            self._fit(np.where(truth, logits, -logits)[known], truth[known])
            for logits, truth, known in columns
        ]

    def _fit(self, signed: np.ndarray, truth: np.ndarray) -> float:
        """Fit one category. signed: log-odds of the truth, (n,)."""
        if truth.all() or not truth.any():  # the best temperature would be none
            return 1.0
        return minimize(lambda temperature: np.logaddexp(0, -signed / temperature).mean())

    def judge(self, temperatures: Sequence[float] | None = None) -> Judged:
        logits = (self._log_odds / np.asarray(temperatures or 1.0))[self._is_known]
        truth = self._truth[self._is_known]
        docs = self._docs[np.nonzero(self._is_known)[0]]
        yes = 1 / (1 + np.exp(-logits))
        answers = logits >= 0
        return Judged(
            what=self.what,
            docs=docs,
            confidence=np.where(answers, yes, 1 - yes),
            correct=answers == truth,
            squares=(yes - truth) ** 2,
            losses=np.logaddexp(0, np.where(truth, -logits, logits)),
            loss_docs=docs,
            loss_counts=np.ones(len(docs), dtype=np.int64),
        )


class Entities(Evidence):
    """The predicted entities of documents.

    The likelihood is the one of the whole annotation, for each token. The Brier score and the
    calibration error are of predicted entities: right is one with both boundaries and the label.
    """

    what = "entities"

    def __init__(self, batches: Sequence[tuple[Batch, np.ndarray, np.ndarray]]) -> None:
        """batches: with the true tags of all tokens, (n_tokens,), in the scheme of the pipe, and
        the numbers of the documents. In schemes other than BILUO, whitespace has no tag.
        """
        self._batches = batches

    @classmethod
    def join(cls, parts: Sequence[Entities]) -> Entities:
        return cls([*chain.from_iterable(part._batches for part in parts)])

    @property
    def n(self) -> int:
        return sum(len(batch.tokens) for batch, *_ in self._batches)

    def fit(self) -> list[float]:
        return [minimize(self._log_loss)]

    def judge(self, temperatures: Sequence[float] | None = None) -> Judged:
        (temperature,) = temperatures or [1.0]
        return Judged.join([self._judge(*batch, temperature) for batch in self._batches])

    def _judge(
        self, batch: Batch, tags: np.ndarray, docs: np.ndarray, temperature: float
    ) -> Judged:
        softer = batch.at(temperature)
        entities = softer.decode()
        gold = np.full((len(tags), batch.scores.shape[1]), -1.0)
        gold[np.arange(len(tags)), np.maximum(tags, OUTSIDE)] = 1.0
        truth = {*map(tuple, batch.with_scores(gold).decode().tolist())}
        correct = np.array([tuple(e) in truth for e in entities.tolist()], dtype=bool)
        confidence = softer.probabilities(entities).astype("d")
        losses, counts = _losses(softer, tags)
        return Judged(
            what=self.what,
            docs=docs[np.searchsorted(batch.bounds, entities[:, 0], side="right") - 1],
            confidence=confidence,
            correct=correct,
            squares=(confidence - correct) ** 2,
            losses=losses,
            loss_docs=docs,
            loss_counts=counts,
        )

    def _log_loss(self, temperature: float) -> float:
        losses = [_losses(batch.at(temperature), tags)[0] for batch, tags, _ in self._batches]
        return float(sum(map(np.sum, losses))) / max(1, self.n)


def _losses(batch: Batch, tags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute -log(probability of the true tags) of each document.

    RETURNS: (n_docs,) the losses, and (n_docs,) the numbers of their tokens.
    """
    tokens = batch.tokens
    bounds = np.searchsorted(tokens, batch.bounds)
    true = np.concatenate([[0.0], np.cumsum(batch.scores[tokens, tags[tokens]], dtype="d")])
    marginals = batch.marginals()
    totals = [marginals.log_sum(*pair) for pair in pairwise(bounds.tolist())]
    return np.array(totals) - np.diff(true[bounds]), np.diff(bounds)


def minimize(loss: Callable[[float], Any]) -> float:
    """Find the temperature with the lowest loss by golden-section search over its logarithm.

    Log losses are convex in the inverse of the temperature, so they have a single minimum. It is
    found to 0.1 %.
    """
    low, high = math.log(LOWEST), math.log(HIGHEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(math.exp(left)), loss(math.exp(right))
    while high - low > 1e-3:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(math.exp(right))
    return math.exp((low + high) / 2)
