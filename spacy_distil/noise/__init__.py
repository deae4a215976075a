"""Noise in texts: typos, casing, errors of optical character recognition, odd spaces."""

from spacy_distil.noise.documents import add_noise
from spacy_distil.noise.kinds import CASING, KINDS, TYPOS

__all__ = ["CASING", "KINDS", "TYPOS", "add_noise"]
