"""The settings of a teaching run: a config of `spacy train` with one section more.

`template` has every setting with a comment that says what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from confection import Config
from pydantic import Field

from spacy_distil.distillation.pipeline.heads import PipeSettings, Target
from spacy_distil.errors import ConfigError
from spacy_distil.runs.settings import Count, Section, read_config, read_section
from spacy_distil.runs.stages import split_steps

SECTION = "distillation"
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StudentSettings(Section):
    """start: "teacher", its trained layers and heads; "config", what the config says; "auto", the
    former where it is possible. layers, n_layers: which of the teacher's, and how many.
    """

    start: Literal["auto", "teacher", "config"] = "auto"
    layers: Literal["first", "even"] | list[int] = "first"
    n_layers: Count | None = None


class HiddenSettings(Section):
    """layers: "last", "even", or [[student's, teacher's], ...]."""

    layers: Literal["last", "even"] | list[list[int]] = "last"


class PipeSection(Section):
    """See `heads.PipeSettings`. temperature: `None` is that of [distillation]."""

    teacher: str | None = None
    target: Target = "auto"
    temperature: Temperature | None = None
    weight: Weight = 1.0


class StageSettings(Section):
    """share: of the steps. hidden, soft, gold: weights of what is learned."""

    share: Weight = 0.0
    hidden: Weight = 0.0
    soft: Weight = 0.0
    gold: Weight = 0.0


class DistillationSettings(Section):
    """corpus: dotted name of a reader, or `None`. cache: directory, or `None` for the output's."""

    corpus: str | None = None
    cache: str | None = None
    temperature: Temperature = 1.0
    student: Any = None
    hidden: Any = None
    stages: Any = None
    pipes: Any = None


# In this order, which is that of the run.
STAGES: dict[str, StageSettings] = {
    "hidden": StageSettings(share=0.0, hidden=1.0),
    "soft": StageSettings(share=1.0, soft=1.0),
    "gold": StageSettings(share=0.0, gold=1.0),
}


@dataclass(frozen=True)
class Stage:
    """What a stretch of the run's steps learns.

    start, end: its first step, and the one after its last.
    hidden, soft, gold: weights of hidden states, soft targets and gold annotation.
    """

    name: str
    start: int
    end: int
    hidden: float
    soft: float
    gold: float

    @property
    def uses_text(self) -> bool:
        """Whether documents without annotation have something to teach."""
        return self.hidden > 0 or self.soft > 0


@dataclass(frozen=True)
class PipelineDistilConfig:
    """A validated config.

    spacy: the whole of it, not interpolated.
    stages: those with steps, in order.
    pipes: settings of the pipes that the config names.
    """

    spacy: Config
    corpus: str | None
    cache: str | None
    temperature: float
    student: StudentSettings
    hidden: HiddenSettings
    stages: tuple[Stage, ...]
    pipes: dict[str, PipeSettings]

    @property
    def max_steps(self) -> int:
        return self.stages[-1].end

    def stage_at(self, step: int) -> Stage:
        """The stage of a step, numbered from 0; the last one goes on for ever."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])


# What a resumed run may change: none of it changes the student.
FREE_ON_RESUME = frozenset({f"{SECTION}.cache", "training.logger"})


def load_config(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> PipelineDistilConfig:
    """Read and validate a config. See `distil_pipeline` for the arguments."""
    spacy_config, interpolated = read_config(
        config, overrides, kind="pipeline", complete=_add_blocks
    )
    if SECTION not in interpolated:
        raise ConfigError(
            f"The config has no section [{SECTION}]. A commented config that has one is written "
            "by: python -m spacy distil init-config pipeline student.cfg"
        )
    for read in (spacy_config, interpolated):
        _remove_empty_blocks(read[SECTION])
    raw = interpolated[SECTION]
    top = read_section(SECTION, DistillationSettings, raw)
    blocks = {name: _block(raw, name) for name in ("student", "hidden", "stages", "pipes")}
    for name in blocks["stages"]:
        if name not in STAGES:
            raise ConfigError(f"[{SECTION}.stages.{name}] is no stage. Stages: {', '.join(STAGES)}")
    training = interpolated.get("training", {})
    if training.get("max_epochs", 0) != 0:
        raise ConfigError(
            f"training.max_epochs = {training['max_epochs']!r}: a teaching run has the length that "
            "training.max_steps says, which its stages share. Set max_epochs to 0"
        )
    return PipelineDistilConfig(
        spacy=spacy_config,
        corpus=top.corpus,
        cache=top.cache,
        temperature=top.temperature,
        student=read_section(f"{SECTION}.student", StudentSettings, blocks["student"]),
        hidden=read_section(f"{SECTION}.hidden", HiddenSettings, blocks["hidden"]),
        stages=_stages(blocks["stages"], training.get("max_steps")),
        pipes={
            name: _pipe(name, _block(blocks["pipes"], name), top.temperature)
            for name in blocks["pipes"]
        },
    )


def _add_blocks(config: Config) -> None:
    if SECTION not in config:
        return
    section = config[SECTION]
    for name in ("student", "hidden", "stages", "pipes"):
        section.setdefault(name, {})
    for parent, names in (("stages", STAGES), ("pipes", config.get("components", {}))):
        for name in names if isinstance(section[parent], dict) else ():
            section[parent].setdefault(name, {})


def _remove_empty_blocks(section: dict[str, Any]) -> None:
    for parent in ("stages", "pipes"):
        blocks = section[parent]
        if isinstance(blocks, dict):
            section[parent] = {name: block for name, block in blocks.items() if block != {}}


def _block(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    block = section.get(name, {})
    if not isinstance(block, Mapping):
        raise ConfigError(f"{SECTION}.{name} = {block!r}: must be a block [{SECTION}.{name}]")
    return block


def _pipe(name: str, block: Mapping[str, Any], temperature: float) -> PipeSettings:
    settings = read_section(f"{SECTION}.pipes.{name}", PipeSection, block)
    return PipeSettings(
        settings.teacher, settings.target, settings.temperature or temperature, settings.weight
    )


def _stages(blocks: Mapping[str, Any], max_steps: Any) -> tuple[Stage, ...]:
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ConfigError(
            f"training.max_steps = {max_steps!r}: expected a whole number above 0, the steps of "
            "the run, which the stages share"
        )
    settings: dict[str, StageSettings] = {}
    for name, default in STAGES.items():
        values = {**default.model_dump(), **_block(blocks, name)}
        chosen = read_section(f"{SECTION}.stages.{name}", StageSettings, values)
        if chosen.share and not (chosen.hidden or chosen.soft or chosen.gold):
            raise ConfigError(
                f"[{SECTION}.stages.{name}] has a share of {chosen.share}, but hidden, soft and "
                "gold are all 0: it would learn nothing. Give one of them a weight, or set share "
                "to 0"
            )
        settings[name] = chosen
    if not any(each.share for each in settings.values()):
        raise ConfigError(
            f"No stage of [{SECTION}.stages] has a share above 0: there is nothing to learn"
        )
    steps = split_steps({name: each.share for name, each in settings.items()}, max_steps)
    return tuple(
        Stage(name, steps[name].start, steps[name].stop, each.hidden, each.soft, each.gold)
        for name, each in settings.items()
        if steps[name]
    )
