"""Choosing how each pipe of the student learns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from spacy.language import Language
from spacy.pipeline import (
    DependencyParser,
    EntityRecognizer,
    SentenceRecognizer,
    TextCategorizer,
)

from spacy_distil.distillation.pipeline.heads.base import Head, PipeSettings, Target, UnsuitedError
from spacy_distil.distillation.pipeline.heads.silver import SilverHead
from spacy_distil.distillation.pipeline.heads.softmax import SoftmaxHead
from spacy_distil.distillation.pipeline.heads.textcat import TextcatHead
from spacy_distil.distillation.pipeline.heads.transitions import TransitionHead
from spacy_distil.distillation.pipeline.labels import ENTITY_KINDS, kind_of
from spacy_distil.errors import ConfigError

TRANSITION_KINDS = (EntityRecognizer, DependencyParser)


@dataclass(frozen=True)
class LearningPlan:
    """How the student's pipes learn, by their names in the student and in its order.

    heads: the pipes that learn from the teacher.
    gold: the pipes that learn from annotation alone. A pipe has a head without a teacher if its own
        `update` would learn from documents without annotation. None stands for its own `update`.
    """

    heads: dict[str, Head]
    gold: dict[str, Head | None]


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
        name: pipe for name, pipe in student.pipeline if name not in frozen and _is_learner(pipe)
    }
    for name in pipes:
        _check_name(name, student, learners, frozen)
    plan = LearningPlan({}, {})
    for name, pipe in learners.items():
        settings = pipes.get(name, PipeSettings())
        head = _plan_head(name, student, teacher, settings)
        if head is None:
            plan.gold[name] = _plan_gold(name, pipe, settings, text=text)
        else:
            plan.heads[name] = head
    return plan


def find_pairs(
    student: Language, teacher: Language, pipes: Mapping[str, PipeSettings]
) -> dict[str, str]:
    """Find the teacher's pipe for each of the student's pipes that learns from the teacher.

    RETURNS: the teacher's name of a pipe, by the student's.
    """
    pairs = {}
    for name, pipe in student.pipeline:
        settings = pipes.get(name, PipeSettings())
        source = settings.source(name)
        if _is_learner(pipe) and settings.target != "gold" and source in teacher.pipe_names:
            pairs[name] = source
    return pairs


def _is_learner(pipe: Any) -> bool:
    """Tell whether a pipe is trainable and not an encoder, which learns through its listeners."""
    return bool(getattr(pipe, "is_trainable", False)) and not hasattr(pipe, "listeners")


def _check_name(
    name: str, student: Language, learners: Mapping[str, Any], frozen: Collection[str]
) -> None:
    if name in learners:
        return
    section = f"[distillation.pipes.{name}]"
    if name not in student.pipe_names:
        problem = "the student has no such pipe"
    elif name in frozen:
        problem = "this pipe is among the [training] frozen_components"
    elif hasattr(student.get_pipe(name), "listeners"):
        problem = "this pipe is the encoder, which learns through the pipes that listen to it"
    else:
        problem = "this pipe is not trainable"
    raise ConfigError(
        f"{section}: {problem}. Expected one of {_listed(learners)}; rename the section or "
        "remove it."
    )


def _plan_head(
    name: str, student: Language, teacher: Language, settings: PipeSettings
) -> Head | None:
    """Choose how a pipe learns from the teacher. None means that it learns from gold alone."""
    section = f"distillation.pipes.{name}"
    source = settings.source(name)
    if source not in teacher.pipe_names:
        sources = [each for each, pipe in teacher.pipeline if kind_of(pipe) is not None]
        if settings.teacher is not None:
            raise ConfigError(
                f"{section}.teacher = {source!r}: the teacher has no such pipe. "
                f"Expected one of {_listed(sources)}."
            )
        if settings.target in ("soft", "silver"):
            raise ConfigError(
                f"{section}.target = {settings.target!r}: the teacher has no pipe {source!r} to "
                f"learn from. Set teacher in [{section}] to one of its pipes, "
                f'{_listed(sources)}, or set target = "gold".'
            )
        return None
    if settings.target == "gold":
        return None
    student_pipe, teacher_pipe = student.get_pipe(name), teacher.get_pipe(source)
    kind = kind_of(student_pipe)
    possible = _possible_targets(kind, kind_of(teacher_pipe))
    is_auto = settings.target == "auto"
    targets = possible if is_auto else [settings.target]
    if (settings.teacher and not targets) or not set(targets) <= set(possible):
        setting, value = ("teacher", source) if is_auto else ("target", settings.target)
        raise ConfigError(
            f"{section}.{setting} = {value!r}: {name!r} of the student is a "
            f"{student.get_pipe_meta(name).factory!r}, {source!r} of the teacher a "
            f"{teacher.get_pipe_meta(source).factory!r}, so target can only be "
            f"{' or '.join(map(repr, (*possible, 'gold')))}."
        )
    reason: UnsuitedError | None = None
    for target in targets:
        try:
            return _head_class(target, kind)(student_pipe, teacher_pipe, settings)
        except UnsuitedError as error:
            reason = error
    # A user who names the teacher's pipe or the target does not want gold alone instead.
    if reason is not None and (settings.teacher or not is_auto):
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


def _possible_targets(student: type | None, teacher: type | None) -> list[Target]:
    """List the targets that two kinds of pipes allow, the best one first."""
    targets: list[Target] = []
    if student is None or teacher is None:
        return targets
    if student is teacher:
        targets.append("soft")
    if (student in ENTITY_KINDS and teacher in ENTITY_KINDS) or (
        student is teacher is DependencyParser
    ):
        targets.append("silver")
    return targets


def _head_class(target: Target, kind: type | None) -> Callable[..., Head]:
    if target == "silver":
        return SilverHead
    if kind is not None and issubclass(kind, TextCategorizer):
        return TextcatHead
    return TransitionHead if kind in TRANSITION_KINDS else SoftmaxHead


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
