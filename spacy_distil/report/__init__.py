"""Evaluation and speed of pipelines side by side, as tables and a plot."""

from spacy_distil.report.comparison import compare

__all__ = ["compare"]
