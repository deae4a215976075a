"""How each pipe of the student learns: one file for each kind of head, and `plan` chooses them."""

from spacy_distil.distillation.pipeline.heads.base import Head, PipeSettings
from spacy_distil.distillation.pipeline.heads.plan import LearningPlan, find_pairs, plan_heads

__all__ = ["Head", "LearningPlan", "PipeSettings", "find_pairs", "plan_heads"]
