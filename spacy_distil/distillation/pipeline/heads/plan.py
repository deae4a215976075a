"""Choosing how each pipe of the student learns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from spacy.language import Language
from spacy.pipeline import (
    DependencyParser,
    EntityRecognizer,
    SentenceRecognizer,
    TextCategorizer,
)

from spacy_distil.distillation.pipeline.heads.base import Head, PipeSettings, Target, UnsuitedError
from spacy_distil.distillation.pipeline.heads.decisions import decision_head
from spacy_distil.distillation.pipeline.heads.pairs import (
    Pairing,
    find_pairs,
    is_learner,
    quoted,
    targets_between,
    teaching_pipes,
)
from spacy_distil.distillation.pipeline.heads.silver import SilverHead
from spacy_distil.distillation.pipeline.heads.softmax import SoftmaxHead
from spacy_distil.distillation.pipeline.heads.textcat import TextcatHead
from spacy_distil.distillation.pipeline.heads.transitions import TransitionHead
from spacy_distil.distillation.pipeline.heads.two_texts import PairHead, QAHead
from spacy_distil.distillation.pipeline.heads.vectors import VectorsHead
from spacy_distil.distillation.pipeline.labels import kind_of
from spacy_distil.errors import ConfigError
from spacy_distil.pairs.pair_pipe import DistilPair
from spacy_distil.pairs.qa_pipe import DistilQA
from spacy_distil.vectors.pipe import DistilVectors

TRANSITION_KINDS = (EntityRecognizer, DependencyParser)


@dataclass(frozen=True)
class LearningPlan:
    """How the student's pipes learn, by their names in the student and in its order.

    heads: the pipes that learn from the teacher.
    gold: the pipes that learn from annotation alone. A pipe has a head without a teacher if its own
        `update` would learn from documents without annotation. None stands for its own `update`.
    alone: why a pipe of `gold` has no teacher, though one would suit it.
    unused: the teacher's pipes that no pipe of the student learns from or is a copy of.
    """

    heads: dict[str, Head]
    gold: dict[str, Head | None]
    alone: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def plan_heads(
    student: Language,
    teacher: Language,
    pipes: Mapping[str, PipeSettings],
    *,
    frozen: Collection[str] = (),
    text: bool = False,
) -> LearningPlan:
    """Choose how each trainable pipe of the student learns.

    student, teacher: initialized. Pipes that learn from each other have the same labels.
    pipes: settings by the student's name of the pipe. The other pipes have the default settings.
    frozen: names of the student's pipes that do not learn.
    text: whether the run has documents without annotation.
    Raises ConfigError for a setting that cannot work.
    """
    learners = {
        name: pipe for name, pipe in student.pipeline if name not in frozen and is_learner(pipe)
    }
    pairing = find_pairs(student, teacher, pipes, frozen=frozen)
    plan = LearningPlan({}, {}, dict(pairing.alone), pairing.unused)
    for name, pipe in learners.items():
        settings = pipes.get(name, PipeSettings())
        try:
            head = _plan_head(name, student, teacher, settings, pairing)
        except UnsuitedError as error:
            # A user who names the teacher's pipe or the target does not want gold alone instead.
            if settings.teacher or settings.target != "auto":
                raise
            plan.alone[name] = str(error)
            head = None
        if head is None:
            plan.gold[name] = _plan_gold(name, pipe, settings, text=text)
        else:
            plan.heads[name] = head
    return plan


def _plan_head(
    name: str, student: Language, teacher: Language, settings: PipeSettings, pairing: Pairing
) -> Head | None:
    """Choose how a pipe learns from the teacher. None means that it learns from gold alone.

    Raises UnsuitedError if no target suits the pair of pipes as they are set up.
    """
    section = f"distillation.pipes.{name}"
    source = pairing.sources.get(name)
    if source is None:
        if settings.target in ("soft", "silver"):
            raise ConfigError(
                f"{section}.target = {settings.target!r}: the teacher has no pipe {name!r} to "
                f"learn from. Set teacher in [{section}] to one of its pipes, "
                f'{quoted(teaching_pipes(teacher))}, or set target = "gold".'
            )
        return None
    student_pipe, teacher_pipe = student.get_pipe(name), teacher.get_pipe(source)
    kind = kind_of(student_pipe)
    possible = targets_between(student_pipe, teacher_pipe)
    is_auto = settings.target == "auto"
    targets = possible if is_auto else [settings.target]
    if (settings.teacher and not targets) or not set(targets) <= set(possible):
        setting, chosen = ("teacher", source) if is_auto else ("target", settings.target)
        raise ConfigError(
            f"{section}.{setting} = {chosen!r}: {name!r} of the student is a "
            f"{student.get_pipe_meta(name).factory!r}, {source!r} of the teacher a "
            f"{teacher.get_pipe_meta(source).factory!r}, so target can only be "
            f"{' or '.join(map(repr, (*possible, 'gold')))}."
        )
    is_deciding = name in pairing.decisions
    for each in ("spans_key", "threshold"):
        value = getattr(settings, each)
        if value is not None and not is_deciding:
            raise ConfigError(
                f"{section}.{each} = {value!r}: the model of the teacher's {source!r} teaches, and "
                "the setting has no effect. Leave it out."
            )
    reason: UnsuitedError | None = None
    for target in targets:
        head_class = decision_head if is_deciding else _head_class(target, kind)
        own = settings.model_copy(update={"teacher": source, "target": target})
        try:
            return head_class(student_pipe, teacher_pipe, own)
        except UnsuitedError as error:
            reason = error
    if reason is not None:
        raise reason
    return None


def _plan_gold(name: str, pipe: Any, settings: PipeSettings, *, text: bool) -> Head | None:
    """Choose how a pipe learns from annotation alone. See `LearningPlan.gold`."""
    kind = kind_of(pipe)
    if kind is None and text:
        raise ConfigError(
            f"{name!r} learns from annotation alone, and cannot tell documents without annotation "
            "from annotated ones that have nothing to find, such as documents without spans: it "
            "would learn to find nothing. Set corpus = null in [distillation], add "
            f"{name!r} to [training] frozen_components, or remove it from the config and train it "
            "afterwards with 'spacy train'."
        )
    # Of the known pipes, these take missing annotation for annotation.
    if kind is TextCategorizer:
        return TextcatHead(pipe, None, settings)
    if kind is SentenceRecognizer:
        return SoftmaxHead(pipe, None, settings)
    return None


def _head_class(target: Target, kind: type | None) -> Callable[..., Head]:
    if target == "silver":
        return SilverHead
    if kind is not None and issubclass(kind, TextCategorizer):
        return TextcatHead
    if kind is DistilVectors:
        return VectorsHead
    if kind is DistilPair:
        return PairHead
    if kind is DistilQA:
        return QAHead
    return TransitionHead if kind in TRANSITION_KINDS else SoftmaxHead
