"""Predictions of pipes beside the truth, at any temperature.

A temperature divides the logits of a pipe (Guo et al. 2017). The best class stays the best, and its
probability changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spacy_distil.ner.batch import Batch
from spacy_distil.ner.decoding import OUTSIDE
from spacy_distil.trust.reliability import Reliability, measure

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
    def score(self, temperatures: Sequence[float]) -> Reliability:
        """Measure the predictions. temperatures: as `fit` returns them."""


class Choices(Evidence):
    """One class of several, for each token or document."""

    def __init__(self, what: str, logits: np.ndarray, truth: np.ndarray) -> None:
        """logits: (n, n_classes). truth: (n,), number of the class."""
        self.what = what
        self._logits = np.asarray(logits, dtype="d")
        self._truth = truth

    @property
    def n(self) -> int:
        return len(self._truth)

    def fit(self) -> list[float]:
        return [minimize(self._log_loss)]

    def score(self, temperatures: Sequence[float]) -> Reliability:
        (temperature,) = temperatures
        probs = np.exp(self._log_probs(temperature))
        best = probs.argmax(axis=1)
        rows = np.arange(self.n)
        squares = (probs**2).sum(axis=1) - 2 * probs[rows, self._truth] + 1
        return measure(
            probs[rows, best],
            best == self._truth,
            brier=float(squares.mean()),
            log_loss=self._log_loss(temperature),
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

    def __init__(self, log_odds: np.ndarray, truth: np.ndarray, is_known: np.ndarray) -> None:
        """log_odds: (n_docs, n_labels). truth, is_known: (n_docs, n_labels), bool."""
        self._log_odds = np.asarray(log_odds, dtype="d")
        self._truth = truth
        self._is_known = is_known

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

    def score(self, temperatures: Sequence[float]) -> Reliability:
        logits = (self._log_odds / np.asarray(temperatures))[self._is_known]
        truth = self._truth[self._is_known]
        yes = 1 / (1 + np.exp(-logits))
        answers = logits >= 0
        return measure(
            np.where(answers, yes, 1 - yes),
            answers == truth,
            brier=float(((yes - truth) ** 2).mean()),
            log_loss=float(np.logaddexp(0, np.where(truth, -logits, logits)).mean()),
        )


class Entities(Evidence):
    """The predicted entities of documents.

    The likelihood is the one of the whole annotation, for each token. The Brier score and the
    calibration error are of predicted entities: right is one with both boundaries and the label.
    """

    what = "entities"

    def __init__(self, batches: Sequence[tuple[Batch, np.ndarray]]) -> None:
        """batches: with the true tags of all tokens, (n_tokens,), in the scheme of the pipe. In
        schemes other than BILUO, whitespace has none.
        """
        self._batches = batches

    @property
    def n(self) -> int:
        return sum(len(batch.tokens) for batch, _ in self._batches)

    def fit(self) -> list[float]:
        return [minimize(self._log_loss)]

    def score(self, temperatures: Sequence[float]) -> Reliability:
        (temperature,) = temperatures
        confidence: list[Any] = []
        correct: list[Any] = []
        for batch, tags in self._batches:
            softer = batch.at(temperature)
            entities = softer.decode()
            gold = np.full((len(tags), batch.scores.shape[1]), -1.0)
            gold[np.arange(len(tags)), np.maximum(tags, OUTSIDE)] = 1.0
            truth = {*map(tuple, batch.with_scores(gold).decode().tolist())}
            confidence.append(softer.probabilities(entities))
            correct.append(np.array([tuple(e) in truth for e in entities.tolist()], dtype=bool))
        probs, right = np.concatenate(confidence), np.concatenate(correct)
        brier = float(((probs - right) ** 2).mean()) if len(probs) else 0.0
        return measure(probs, right, brier=brier, log_loss=self._log_loss(temperature))

    def _log_loss(self, temperature: float) -> float:
        loss = 0.0
        for batch, tags in self._batches:
            softer = batch.at(temperature)
            tokens = batch.tokens
            total = softer.marginals().log_sum(0, len(tokens))
            loss += total - float(softer.scores[tokens, tags[tokens]].sum(dtype="d"))
        return loss / max(1, self.n)


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
