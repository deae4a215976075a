"""How each pipe of the student learns: one file for each kind of head.

`pairs` finds the teacher's pipe for a pipe of the student, and `plan` chooses the head.
"""

from spacy_distil.distillation.pipeline.heads.base import Head, PipeSettings
from spacy_distil.distillation.pipeline.heads.pairs import Pairing, find_pairs
from spacy_distil.distillation.pipeline.heads.plan import LearningPlan, plan_heads

__all__ = ["Head", "LearningPlan", "Pairing", "PipeSettings", "find_pairs", "plan_heads"]
