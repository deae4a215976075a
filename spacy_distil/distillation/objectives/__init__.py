"""The distillation losses, one file each. Importing this registers them."""

from __future__ import annotations

from spacy_distil.distillation.objectives.base import Encoded, Loss, Needs, Objective, Outputs
from spacy_distil.distillation.objectives.cosine import Cosine
from spacy_distil.distillation.objectives.masked_lm import MaskedLM
from spacy_distil.distillation.objectives.registry import distil_objectives, make_objective
from spacy_distil.distillation.objectives.soft_targets import SoftTargets

__all__ = [
    "Cosine",
    "Encoded",
    "Loss",
    "MaskedLM",
    "Needs",
    "Objective",
    "Outputs",
    "SoftTargets",
    "distil_objectives",
    "make_objective",
]
