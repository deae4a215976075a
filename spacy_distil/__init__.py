"""Distilled transformers as spaCy components."""

from spacy_distil.teaching import teach

__version__ = "0.1.0"
__all__ = ["teach"]
