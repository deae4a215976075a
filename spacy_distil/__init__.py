"""Distilled transformers as spaCy components."""

__version__ = "0.1.0"
