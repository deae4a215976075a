"""The settings of a pipeline distillation: a config of `spacy train` with one more section.

`spacy distil init-config pipeline` writes a config with a comment on every setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from confection import Config
from pydantic import Field
from spacy.schemas import ConfigSchemaTraining
from spacy.util import registry

from spacy_distil.distillation.pipeline.calls import TeacherSettings
from spacy_distil.distillation.pipeline.heads.base import PipeSettings, Temperature, Weight
from spacy_distil.distillation.pipeline.language import TokenizerChoice
from spacy_distil.distillation.pipeline.noise import NoiseSettings
from spacy_distil.errors import ConfigError
from spacy_distil.runs.settings import Count, Section, read_config, read_section
from spacy_distil.runs.stages import split_steps
from spacy_distil.students.vocabulary.settings import WHOLE, VocabularySettings

SECTION = "distillation"
# Settings of [distillation.student] that change the teacher's layers.
SHAPE_SETTINGS = ("heads", "ffn", "width", "share_layers", "embedding_size")
BLOCKS = ("teacher", "student", "noise", "hidden", "stages", "pipes")


HeldOut = Annotated[int, Field(ge=2)]


class StudentSettings(Section):
    """How the student starts.

    start: "teacher", from the teacher's trained layers and heads; "config", from the encoder in the
        config; "auto", from the teacher if possible.
    layers, n_layers: which of the teacher's layers, and how many.
    heads, ffn, width: attention heads, feed-forward neurons and hidden size; None keeps the
        teacher's.
    share_layers: whether all layers share the weights of one, as in ALBERT.
    embedding_size: width of ALBERT's factorized embeddings; None keeps them whole.
    tokenizer: "teacher", as the teacher's; "config", as the config says; "auto", as the teacher's
        unless the config names another one than the default of the language, or another language.
    vocabulary: which of the encoder's pieces the student gets, see `VocabularySettings`.
    """

    start: Literal["auto", "teacher", "config"] = "auto"
    layers: Literal["first", "even"] | list[int] = "first"
    n_layers: Count | None = None
    heads: Count | None = None
    ffn: Count | None = None
    width: Count | None = None
    share_layers: bool = False
    embedding_size: Count | None = None
    tokenizer: TokenizerChoice = "auto"
    vocabulary: VocabularySettings = WHOLE


class HiddenSettings(Section):
    """Which hidden states are learned.

    layers: "last", "even", or [[student's, teacher's], ...].
    """

    layers: Literal["last", "even"] | list[list[int]] = "last"


class StageSettings(Section):
    """How much a stage learns, and of what.

    share: of the steps.
    hidden, vectors, soft, gold: weights of hidden states, vectors of docs, soft targets and gold
        annotation.
    """

    share: Weight = 0.0
    hidden: Weight = 0.0
    vectors: Weight = 0.0
    soft: Weight = 0.0
    gold: Weight = 0.0


class DistillationSettings(Section):
    """The settings of [distillation] itself. Its blocks are read by themselves.

    corpus: dotted name of a reader of unlabelled text, or None.
    cache: directory of the cache. None puts it into the output directory.
    held_out: without a development corpus, one of so many documents without annotation is held out
        for scores.
    """

    corpus: str | None = None
    cache: str | None = None
    temperature: Temperature = 1.0
    held_out: HeldOut = 50
    teacher: Any = None
    student: Any = None
    noise: Any = None
    hidden: Any = None
    stages: Any = None
    pipes: Any = None


# In the order of the run.
STAGES: dict[str, StageSettings] = {
    "hidden": StageSettings(share=0.0, hidden=1.0),
    "vectors": StageSettings(share=0.0, vectors=1.0),
    "soft": StageSettings(share=1.0, soft=1.0),
    "gold": StageSettings(share=0.0, gold=1.0),
}


@dataclass(frozen=True)
class PipelineStage:
    """A part of the run's steps, and what it learns.

    start, end: the first step, and the one after the last.
    hidden, vectors, soft, gold: weights of hidden states, vectors of docs, soft targets and gold
        annotation.
    """

    name: str
    start: int
    end: int
    hidden: float
    vectors: float
    soft: float
    gold: float

    @property
    def uses_text(self) -> bool:
        """Whether the stage learns from documents without annotation."""
        return self.hidden > 0 or self.vectors > 0 or self.soft > 0

    @property
    def is_vectors(self) -> bool:
        """Whether the stage learns nothing but vectors of docs."""
        return not (self.hidden or self.soft or self.gold)


@dataclass(frozen=True)
class PipelineDistilConfig:
    """A validated config.

    spacy: the whole config, not interpolated.
    stages: the stages that have steps, in order.
    pipes: settings of the pipes that the config names.
    """

    spacy: Config
    corpus: str | None
    cache: str | None
    temperature: float
    held_out: int
    teacher: TeacherSettings
    student: StudentSettings
    noise: NoiseSettings
    hidden: HiddenSettings
    stages: tuple[PipelineStage, ...]
    pipes: dict[str, PipeSettings]

    @property
    def max_steps(self) -> int:
        return self.stages[-1].end

    def stage_at(self, step: int) -> PipelineStage:
        """Return the stage of a step. Steps count from 0, and the last stage never ends."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])


# A resumed run may change these settings, because they do not change the student.
FREE_ON_RESUME = frozenset(
    {
        f"{SECTION}.cache",
        *(f"{SECTION}.teacher.{name}" for name in TeacherSettings.model_fields),
        "training.logger",
    }
)


def load_config(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> PipelineDistilConfig:
    """Read and validate a config. See `distil_pipeline` for the arguments."""
    spacy_config, interpolated = read_config(
        config, overrides, kind="pipeline", complete=_add_blocks
    )
    if SECTION not in interpolated:
        raise ConfigError(
            f"The config has no section [{SECTION}]. This command writes a commented config that "
            "has one: python -m spacy distil init-config pipeline student.cfg"
        )
    for each in (spacy_config, interpolated):
        _remove_empty_blocks(each[SECTION])
    section = interpolated[SECTION]
    top = read_section(SECTION, DistillationSettings, section)
    blocks = {name: _block(section, name) for name in BLOCKS}
    for name in blocks["stages"]:
        if name not in STAGES:
            raise ConfigError(f"[{SECTION}.stages.{name}] is no stage. Stages: {', '.join(STAGES)}")
    training = interpolated.get("training", {})
    if training.get("max_epochs", 0) != 0:
        raise ConfigError(
            f"training.max_epochs = {training['max_epochs']!r}: a pipeline distillation runs for "
            "training.max_steps steps, which its stages share. Set max_epochs to 0"
        )
    frequency = training.get("eval_frequency", 1)
    if not isinstance(frequency, int) or frequency < 1:
        raise ConfigError(
            f"training.eval_frequency = {frequency!r}: expected a whole number above 0, the steps "
            "from one evaluation to the next"
        )
    return PipelineDistilConfig(
        spacy=spacy_config,
        corpus=top.corpus,
        cache=top.cache,
        temperature=top.temperature,
        held_out=top.held_out,
        teacher=read_section(f"{SECTION}.teacher", TeacherSettings, blocks["teacher"]),
        student=read_section(f"{SECTION}.student", StudentSettings, blocks["student"]),
        noise=read_section(f"{SECTION}.noise", NoiseSettings, blocks["noise"]),
        hidden=read_section(f"{SECTION}.hidden", HiddenSettings, blocks["hidden"]),
        stages=_stages(blocks["stages"], training.get("max_steps")),
        pipes={
            name: _pipe(name, _block(blocks["pipes"], name), top.temperature)
            for name in blocks["pipes"]
        },
    )


def resolve_training(config: Config) -> dict[str, Any]:
    """Return the settings of [training], with their functions made."""
    return registry.resolve(config.interpolate()["training"], schema=ConfigSchemaTraining)


def _add_blocks(config: Config) -> None:
    """Add the blocks that a config may leave out, for overrides to set."""
    if SECTION not in config:
        return
    section = config[SECTION]
    for name in BLOCKS:
        section.setdefault(name, {})
    if isinstance(section["student"], dict):
        section["student"].setdefault("vocabulary", {})
    for parent, names in (("stages", STAGES), ("pipes", config.get("components", {}))):
        for name in names if isinstance(section[parent], dict) else ():
            section[parent].setdefault(name, {})


def _remove_empty_blocks(section: dict[str, Any]) -> None:
    """Remove the blocks of stages and pipes that `_add_blocks` added and nobody has filled."""
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
    """Read the settings of a pipe.

    temperature: of [distillation], for a pipe that has none.
    """
    values = dict(block)
    if values.get("temperature") is None:
        values["temperature"] = temperature
    return read_section(f"{SECTION}.pipes.{name}", PipeSettings, values)


def _stages(blocks: Mapping[str, Any], max_steps: Any) -> tuple[PipelineStage, ...]:
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ConfigError(
            f"training.max_steps = {max_steps!r}: expected a whole number above 0, the steps of "
            "the run, which the stages share"
        )
    settings: dict[str, StageSettings] = {}
    for name, default in STAGES.items():
        values = {**default.model_dump(), **_block(blocks, name)}
        stage = read_section(f"{SECTION}.stages.{name}", StageSettings, values)
        if stage.share and not (stage.hidden or stage.vectors or stage.soft or stage.gold):
            raise ConfigError(
                f"[{SECTION}.stages.{name}] has a share of {stage.share}, but hidden, vectors, "
                "soft and gold are all 0: it would learn nothing. Give one of them a weight, or "
                "set share to 0"
            )
        settings[name] = stage
    if not any(each.share for each in settings.values()):
        raise ConfigError(
            f"No stage of [{SECTION}.stages] has a share above 0: there is nothing to learn"
        )
    steps = split_steps({name: each.share for name, each in settings.items()}, max_steps)
    return tuple(
        PipelineStage(name, part.start, part.stop, each.hidden, each.vectors, each.soft, each.gold)
        for name, part in steps.items()
        for each in [settings[name]]
    )
