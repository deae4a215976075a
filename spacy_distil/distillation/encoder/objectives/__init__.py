"""The distillation losses, one file each. Importing this registers them."""

from __future__ import annotations

from spacy_distil.distillation.encoder.objectives.base import (
    Attention,
    Encoded,
    Loss,
    Needs,
    Objective,
    Outputs,
)
from spacy_distil.distillation.encoder.objectives.cosine import Cosine
from spacy_distil.distillation.encoder.objectives.hidden import HiddenStates
from spacy_distil.distillation.encoder.objectives.masked_lm import MaskedLM
from spacy_distil.distillation.encoder.objectives.registry import (
    distil_objectives,
    make_objective,
    prepare_objectives,
)
from spacy_distil.distillation.encoder.objectives.relations import Relations
from spacy_distil.distillation.encoder.objectives.soft_targets import SoftTargets
from spacy_distil.distillation.encoder.objectives.vocabulary import (
    VocabularyObjective,
    vocabulary_losses,
)

__all__ = [
    "Attention",
    "Cosine",
    "Encoded",
    "HiddenStates",
    "Loss",
    "MaskedLM",
    "Needs",
    "Objective",
    "Outputs",
    "Relations",
    "SoftTargets",
    "VocabularyObjective",
    "distil_objectives",
    "make_objective",
    "prepare_objectives",
    "vocabulary_losses",
]
