"""Scores, speed, memory and size of pipelines side by side, as tables and plots."""

from spacy_distil.report.benchmarking import benchmark
from spacy_distil.report.comparison import compare

__all__ = ["benchmark", "compare"]
