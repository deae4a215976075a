"""Explanations for the terminal."""

from __future__ import annotations

from spacy_distil.tables import Table
from spacy_distil.trust.explanations.explanation import Explanation
from spacy_distil.trust.explanations.html import describe, visible

# Rows of the table.
_MOST_TOKENS = 10


def to_text(explanation: Explanation) -> str:
    """List the tokens that count most, for or against the prediction."""
    title = visible(describe(explanation))
    rows = [
        [_cell(text), str(i), f"{value:+.3f}"] for i, text, value in explanation.top(_MOST_TOKENS)
    ]
    if not rows:
        return f"{title}\nNo token counts."
    return Table(title, ["token", "number", "attribution"], rows).to_text()


def _cell(text: str) -> str:
    """Return a token on one line."""
    return visible(text).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
