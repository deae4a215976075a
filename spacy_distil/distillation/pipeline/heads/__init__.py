"""How each pipe of the student learns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args

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

__all__ = ["Head", "PipeSettings", "Plan", "Target", "find_pairs", "plan_heads"]

TARGETS: tuple[Target, ...] = get_args(Target)

TRANSITION_KINDS = (EntityRecognizer, DependencyParser)


@dataclass(frozen=True)
class Plan:
    """How the student's pipes learn.

    heads: those that learn from the teacher, by the student's name of the pipe, in its order.
    gold: the trainable pipes that learn from annotation alone, likewise. Each has a head without a
        teacher, or None where the pipe's own `update` is as good: it learns nothing from a document
        without annotation, or there is none such.
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
) -> Plan:
    """Choose how each trainable pipe of the student learns.

    student, teacher: initialized; the labels of pipes that learn from each other are the same.
    pipes: what was set, by the student's name of the pipe; defaults hold for the others.
    frozen: names of the student's pipes that do not learn.
    text: whether documents without annotation are among those that are learned from.
    Raises ConfigError for a setting that cannot work.
    """
    learners = {
        name: pipe for name, pipe in student.pipeline if name not in frozen and _is_learner(pipe)
    }
    for name, teaching in pipes.items():
        _check_name(name, student, learners, frozen)
        _check_values(name, teaching)
    plan = Plan({}, {})
    for name, pipe in learners.items():
        teaching = pipes.get(name, PipeSettings())
        head = _plan_head(name, student, teacher, teaching)
        if head is None:
            plan.gold[name] = _plan_gold(name, pipe, teaching, text=text)
        else:
            plan.heads[name] = head
    return plan


def find_pairs(
    student: Language, teacher: Language, pipes: Mapping[str, PipeSettings]
) -> dict[str, str]:
    """The teacher's pipe of each of the student's pipes that is to learn from it, by name.

    What is set to learn from gold alone has none.
    """
    pairs = {}
    for name, pipe in student.pipeline:
        teaching = pipes.get(name, PipeSettings())
        source = teaching.source(name)
        if _is_learner(pipe) and teaching.target != "gold" and source in teacher.pipe_names:
            pairs[name] = source
    return pairs


def _is_learner(pipe: Any) -> bool:
    """Whether a pipe is trainable, and no encoder: that one learns through its listeners."""
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


def _check_values(name: str, teaching: PipeSettings) -> None:
    setting = f"distillation.pipes.{name}"
    if teaching.target not in TARGETS:
        raise ConfigError(
            f"{setting}.target = {teaching.target!r}: expected one of {', '.join(TARGETS)}."
        )
    if not (teaching.temperature > 0 and isfinite(teaching.temperature)):
        raise ConfigError(
            f"{setting}.temperature = {teaching.temperature}: expected a number above 0. "
            "1 leaves the teacher's distribution as it is."
        )
    if not (teaching.weight >= 0 and isfinite(teaching.weight)):
        raise ConfigError(
            f"{setting}.weight = {teaching.weight}: expected 0 or more. 1 leaves the pipe's "
            "gradient as it is."
        )


def _plan_head(
    name: str, student: Language, teacher: Language, teaching: PipeSettings
) -> Head | None:
    """How the pipe learns from the teacher; None where it learns from gold alone."""
    section = f"distillation.pipes.{name}"
    source = teaching.source(name)
    if source not in teacher.pipe_names:
        teachers = [each for each, pipe in teacher.pipeline if kind_of(pipe) is not None]
        if teaching.teacher is not None:
            raise ConfigError(
                f"{section}.teacher = {source!r}: the teacher has no such pipe. "
                f"Expected one of {_listed(teachers)}."
            )
        if teaching.target in ("soft", "silver"):
            raise ConfigError(
                f"{section}.target = {teaching.target!r}: the teacher has no pipe {source!r} to "
                f"learn from. Set teacher in [{section}] to one of its pipes, "
                f'{_listed(teachers)}, or set target = "gold".'
            )
        return None
    if teaching.target == "gold":
        return None
    pupil, model = student.get_pipe(name), teacher.get_pipe(source)
    possible = _possible_targets(kind_of(pupil), kind_of(model))
    is_auto = teaching.target == "auto"
    if (is_auto and teaching.teacher and not possible) or not (
        is_auto or teaching.target in possible
    ):
        setting, value = ("teacher", source) if is_auto else ("target", teaching.target)
        raise ConfigError(
            f"{section}.{setting} = {value!r}: {name!r} of the student is a "
            f"{student.get_pipe_meta(name).factory!r}, {source!r} of the teacher a "
            f"{teacher.get_pipe_meta(source).factory!r}, so that target can be "
            f"{' or '.join(map(repr, (*possible, 'gold')))} only."
        )
    reason: UnsuitedError | None = None
    for target in possible if is_auto else [teaching.target]:
        try:
            return _head_class(target, kind_of(pupil))(pupil, model, teaching)
        except UnsuitedError as error:
            reason = error
    # Whoever names a teacher's pipe, or what it is to give, does not mean to do without.
    if reason is not None and (teaching.teacher or not is_auto):
        raise reason
    return None


def _plan_gold(name: str, pipe: Any, teaching: PipeSettings, *, text: bool) -> Head | None:
    """See `Plan.gold`."""
    kind = kind_of(pipe)
    if kind is None and text:
        raise ConfigError(
            f"{name!r} learns from annotation alone, and cannot tell documents without annotation "
            "from annotated ones in which there is nothing to find, such as documents without "
            "spans: it would learn to find nothing. Set corpus = null in [distillation], add "
            f"{name!r} to [training] frozen_components, or take it out of the config and train it "
            "afterwards with 'spacy train'."
        )
    # Of the pipes that are known, these take missing annotation for annotation.
    if kind is TextCategorizer:
        return TextcatHead(pipe, None, teaching)
    if kind is SentenceRecognizer:
        return SoftmaxHead(pipe, None, teaching)
    return None


def _possible_targets(student: type | None, teacher: type | None) -> list[Target]:
    """What a student's pipe can learn from a teacher's, the best one first."""
    found: list[Target] = []
    if student is None or teacher is None:
        return found
    if student is teacher:
        found.append("soft")
    if (student in ENTITY_KINDS and teacher in ENTITY_KINDS) or (
        student is teacher is DependencyParser
    ):
        found.append("silver")
    return found


def _head_class(target: Target, kind: type | None) -> Callable[..., Head]:
    if target == "silver":
        return SilverHead
    if kind is not None and issubclass(kind, TextCategorizer):
        return TextcatHead
    return TransitionHead if kind in TRANSITION_KINDS else SoftmaxHead


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
