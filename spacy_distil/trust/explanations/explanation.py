"""Explanations: an attribution for each token."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp

import numpy as np
from spacy.tokens import Doc

from spacy_distil.trust.explanations.html import to_html
from spacy_distil.trust.explanations.targets import Target


@dataclass(frozen=True)
class Explanation:
    """How much each token speaks for a prediction, or against it.

    doc: processed up to the pipe that is explained.
    target: the prediction: pipe, label, `what`, and the tokens that it is about.
    score: log-odds of the prediction, log(p / (1 - p)). NaN for a doc without tokens.
    attributions: (n_tokens,) float64, in the unit of the score. 0 for tokens that the pipe does not
        see, such as whitespace.
    method: "integrated_gradients" or "occlusion".
    error: of integrated gradients, by how much the sum of the attributions misses the difference
        between `score` and `baseline`. None for occlusion.
    baseline: of integrated gradients, the score of the text of mask pieces. None for occlusion.
    steps: of the integration. None for occlusion.
    """

    doc: Doc
    target: Target
    score: float
    attributions: np.ndarray = field(repr=False)
    method: str
    error: float | None = None
    baseline: float | None = None
    steps: int | None = None

    @property
    def probability(self) -> float:
        """The probability of the prediction."""
        return 1 / (1 + exp(-self.score))

    def top(self, n: int = 10) -> list[tuple[int, str, float]]:
        """List number, text and attribution of the n tokens that count most, for or against."""
        order = np.argsort(-np.abs(self.attributions), kind="stable")[:n]
        chosen = [i for i in order.tolist() if self.attributions[i]]
        return [(i, self.doc[i].text, float(self.attributions[i])) for i in chosen]

    def to_html(self) -> str:
        """Render the text with its tokens coloured, as a piece of HTML that needs nothing else."""
        return to_html(self)

    def _repr_html_(self) -> str:
        return self.to_html()


class Explanations(list[Explanation]):
    """Explanations of several predictions for one doc."""

    def to_html(self) -> str:
        """Render one below the other."""
        return "\n".join(each.to_html() for each in self)

    def _repr_html_(self) -> str:
        return self.to_html()
