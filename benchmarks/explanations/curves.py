"""Deletion and insertion curves: the probability of a class as tokens go, or come, by importance.

Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has Learned"; DeYoung
et al. 2020, "ERASER: A Benchmark to Evaluate Rationalized NLP Models", who measure the same as
comprehensiveness and sufficiency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc

from spacy_distil.trust.explanations.documents import run_before
from spacy_distil.trust.explanations.scores import log_odds, predict
from spacy_distil.trust.explanations.targets import Target

# Of the tokens, from none to all.
SHARES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Curves:
    """Probabilities of a class, by the share of the tokens.

    deletion: (n_shares,), without the most important tokens. A good order lets it fall soon.
    insertion: (n_shares,), with them alone. A good order lets it rise soon.
    """

    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def areas(self) -> tuple[float, float]:
        """The areas under both, from 0 to 1."""
        deletion, insertion = (_area(each) for each in (self.deletion, self.insertion))
        return deletion, insertion


def draw(nlp: Language, doc: Doc, target: Target, order: Sequence[int]) -> Curves:
    """Draw both curves of a doc.

    Tokens are taken out of the doc, not replaced, so no explanation is tested on what it does
    itself. Tokens that `order` lacks, such as whitespace, stay.

    target: of a text classifier.
    order: the tokens, the most important first.
    """
    counts = [round(share * len(order)) for share in SHARES]
    kept = [set(range(len(doc))).difference(order[:n]) for n in counts]
    kept += [set(range(len(doc))).difference(order[n:]) for n in counts]
    docs = [*run_before(nlp, target.pipe, [_take(doc, own) for own in kept], batch_size=len(kept))]
    pipe: Any = nlp.get_pipe(target.pipe)
    scores = [log_odds(own, target.rows, target.classes)[0] for own in predict(pipe, docs)]
    probabilities = 1 / (1 + np.exp(-np.array(scores)))
    return Curves(*np.split(probabilities, 2))


def _take(doc: Doc, kept: set[int]) -> Doc:
    tokens = [token for token in doc if token.i in kept]
    return Doc(doc.vocab, [t.text for t in tokens], [bool(t.whitespace_) for t in tokens])


def _area(curve: np.ndarray) -> float:
    return float((curve[:-1] + curve[1:]).mean() / 2)
