"""Finding the teacher's pipe for each pipe of the student."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from spacy.language import Language
from spacy.pipeline import DependencyParser

from spacy_distil.distillation.pipeline.heads.annotation import (
    Annotation,
    Cats,
    annotation_of,
    declares,
)
from spacy_distil.distillation.pipeline.heads.base import PipeSettings, Target
from spacy_distil.distillation.pipeline.labels import ENTITY_KINDS, is_encoder, kind_of
from spacy_distil.errors import ConfigError


@dataclass(frozen=True)
class Pairing:
    """Which pipe of the teacher each pipe of the student learns from.

    sources: the teacher's name of a pipe, by the student's.
    decisions: names in the student of the pairs whose teacher is of no known kind: it teaches by
        what it leaves on docs.
    alone: for pipes of the student that are in no pair, though pipes of the teacher would suit
        them: why they are not, and the setting that joins them.
    unused: the teacher's pipes that no pipe of the student learns from or is a copy of.
    """

    sources: dict[str, str]
    decisions: list[str]
    alone: dict[str, str]
    unused: list[str]


def find_pairs(
    student: Language,
    teacher: Language,
    pipes: Mapping[str, PipeSettings],
    *,
    frozen: Collection[str] = (),
) -> Pairing:
    """Find the teacher's pipe for each pipe of the student that learns from the teacher.

    It is the pipe that the settings name, or that has the same name and a kind that suits.
    Otherwise it is the only pipe of the teacher whose kind suits, if it suits no other pipe. If no
    kind suits, it is the only pipe of any other kind that declares the annotation in question.

    pipes: settings by the student's name of the pipe. The other pipes have the default settings.
    frozen: names of the student's pipes that do not learn.
    Raises ConfigError for settings that name a pipe that is none.
    """
    names = [name for name, pipe in student.pipeline if is_learner(pipe) and name not in frozen]
    for name, settings in pipes.items():
        _check_name(name, student, names, frozen)
        _check_teacher(name, teacher, settings)
    learners = {name: pipes.get(name, PipeSettings()) for name in names}
    learners = {name: each for name, each in learners.items() if each.target != "gold"}
    sources: dict[str, str] = {}
    for name, settings in learners.items():
        source = settings.source(name)
        if source in teacher.pipe_names and (
            settings.teacher is not None or _same_name_suits(student, teacher, name, settings)
        ):
            sources[name] = source
    candidates = {
        name: _candidates(student, teacher, name, settings, sources)
        for name, settings in learners.items()
        if name not in sources and settings.teacher is None
    }
    alone = {}
    for name, suitable in candidates.items():
        rivals = [other for other, theirs in candidates.items() if set(suitable) & set(theirs)]
        if len(suitable) == len(rivals) == 1:
            sources[name] = suitable[0]
        elif suitable:
            alone[name] = _too_many(name, suitable, rivals)
    deciding = {
        name: _deciding(student, teacher, name, learners[name])
        for name, suitable in candidates.items()
        if not suitable
    }
    for name, suitable in deciding.items():
        kind = _annotation(student, name)
        rivals = [other for other in deciding if _annotation(student, other) is kind]
        if len(suitable) == len(rivals) == 1:
            sources[name] = suitable[0]
        elif suitable:
            alone[name] = _too_many(name, suitable, rivals)
    sources = {name: sources[name] for name in learners if name in sources}
    decisions = [
        name for name, source in sources.items() if _is_deciding(student, teacher, name, source)
    ]
    return Pairing(sources, decisions, alone, _unused(student, teacher, sources))


def is_learner(pipe: Any) -> bool:
    """Tell whether a pipe is trainable and not an encoder, which learns through its listeners."""
    return bool(getattr(pipe, "is_trainable", False)) and not hasattr(pipe, "listeners")


def teaching_pipes(teacher: Language) -> list[str]:
    """List the teacher's pipes that a pipe can learn from."""
    return [name for name, pipe in teacher.pipeline if not is_encoder(pipe)]


def targets_between(student: Any, teacher: Any) -> list[Target]:
    """List the targets that two pipes allow, the best one first."""
    kind = kind_of(teacher)
    if kind is not None or is_encoder(teacher):
        return possible_targets(kind_of(student), kind)
    annotation = annotation_of(student)
    if annotation is None:
        return []
    return ["soft", "silver"] if annotation is Cats else ["silver"]


def possible_targets(student: type | None, teacher: type | None) -> list[Target]:
    """List the targets that two known kinds of pipes allow, the best one first."""
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


def others_before_models(teacher: Language, pairing: Pairing) -> list[str]:
    """List the teacher's pipes of no known kind in front of the last pipe whose model teaches.

    They have to run for it, whether a pipe learns from them or not.
    """
    models = {name: s for name, s in pairing.sources.items() if name not in pairing.decisions}
    last = max(map(teacher.pipe_names.index, models.values()), default=0)
    return [
        name
        for name, pipe in teacher.pipeline[:last]
        if kind_of(pipe) is None and not is_encoder(pipe)
    ]


def quoted(names: Collection[str]) -> str:
    """List names for a message."""
    return ", ".join(map(repr, names)) or "none"


def _too_many(name: str, suitable: Collection[str], rivals: Collection[str]) -> str:
    return (
        f"several pipes suit: {quoted(suitable)} of the teacher, {quoted(rivals)} of the "
        f"student. Set teacher in [distillation.pipes.{name}]"
    )


def _annotation(
    student: Language, name: str, settings: PipeSettings | None = None
) -> type[Annotation] | None:
    return annotation_of(student.get_pipe(name), settings)


def _is_deciding(student: Language, teacher: Language, name: str, source: str) -> bool:
    """Tell whether a pipe learns the decisions of a pipe of no known kind."""
    pipe = teacher.get_pipe(source)
    is_other = kind_of(pipe) is None and not is_encoder(pipe)
    return is_other and _annotation(student, name) is not None


def _deciding(student: Language, teacher: Language, name: str, settings: PipeSettings) -> list[str]:
    """List the teacher's pipes of no known kind that declare the annotation of a pipe."""
    kind = _annotation(student, name, settings)
    return [
        each
        for each in teacher.pipe_names
        if kind is not None
        and _is_deciding(student, teacher, name, each)
        and declares(teacher, each, kind)
    ]


def _check_name(
    name: str, student: Language, learners: Collection[str], frozen: Collection[str]
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
        f"{section}: {problem}. Expected one of {quoted(learners)}; rename the section or "
        "remove it."
    )


def _check_teacher(name: str, teacher: Language, settings: PipeSettings) -> None:
    if settings.teacher is not None and settings.teacher not in teacher.pipe_names:
        raise ConfigError(
            f"distillation.pipes.{name}.teacher = {settings.teacher!r}: the teacher has no such "
            f"pipe. Expected one of {quoted(teaching_pipes(teacher))}."
        )


def _same_name_suits(
    student: Language, teacher: Language, name: str, settings: PipeSettings
) -> bool:
    """Tell whether the teacher's pipe of the same name can teach a pipe, as far as is known."""
    kind = kind_of(student.get_pipe(name))
    if _is_deciding(student, teacher, name, name):
        return name in _deciding(student, teacher, name, settings)
    if kind is None or settings.target != "auto":  # the plan refuses a target that does not suit
        return True
    return bool(possible_targets(kind, kind_of(teacher.get_pipe(name))))


def _candidates(
    student: Language,
    teacher: Language,
    name: str,
    settings: PipeSettings,
    sources: Mapping[str, str],
) -> list[str]:
    """List the teacher's pipes, in no pair yet, that suit a pipe best."""
    kind = kind_of(student.get_pipe(name))
    targets = {
        each: possible_targets(kind, kind_of(pipe))
        for each, pipe in teacher.pipeline
        if each not in sources.values()
    }
    wanted = ["soft", "silver"] if settings.target == "auto" else [settings.target]
    found = ([each for each, possible in targets.items() if t in possible] for t in wanted)
    return next(filter(None, found), [])


def _unused(student: Language, teacher: Language, sources: Mapping[str, str]) -> list[str]:
    """List the teacher's pipes that the student neither learns from nor has itself."""

    def has_itself(name: str) -> bool:
        return name in student.pipe_names and (
            student.get_pipe_meta(name).factory == teacher.get_pipe_meta(name).factory
        )

    return [
        name
        for name, pipe in teacher.pipeline
        if not is_encoder(pipe) and name not in sources.values() and not has_itself(name)
    ]
