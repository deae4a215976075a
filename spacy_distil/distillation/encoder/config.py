"""The settings of an encoder distillation.

Each section is a pydantic model whose fields are the settings. An error in a config raises a
`ConfigError` that names section, key and value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import catalogue
import torch
from confection import Config, ConfigValidationError
from pydantic import AfterValidator, Field
from spacy.util import registry

from spacy_distil.distillation.encoder.objectives import Objective, make_objective
from spacy_distil.distillation.encoder.schedules import Schedule
from spacy_distil.errors import ConfigError
from spacy_distil.runs.settings import Count, Paths, Section, read_config, read_section
from spacy_distil.students.vocabulary.settings import WHOLE, VocabularySettings
from spacy_distil.text.plain_text import TxtDocuments

# Sorted, so that a run does not depend on the order in which its config names languages.
Languages = Annotated[dict[str, Paths], AfterValidator(lambda paths: dict(sorted(paths.items())))]


class TeacherSettings(Section):
    """name: directory or hub name. revision: branch, tag or commit on the hub."""

    name: str
    revision: str | None = None


class StudentSettings(Section):
    """layers: which of the teacher's layers, see `layer_choice.choose_layers`. n_layers: how many.

    start: "teacher" copies the teacher's weights; "random" initializes a new model.
    heads, ffn, width: attention heads and feed-forward neurons of a layer, and hidden size. `None`
        is the teacher's number. With a lower number, the most important ones stay.
    importance_blocks: number of blocks of the corpus to measure importance on.
    share_layers: whether all layers share the weights of one, as in ALBERT.
    embedding_size: width of ALBERT's factorized embeddings; `None` keeps them whole.
    vocabulary: which of the teacher's pieces the student gets, see `VocabularySettings`.
    """

    # A tagger on layers 0-2 of a 6-layer encoder reached UPOS 96.1, on layers 0, 2 and 4 95.4.
    layers: Literal["first", "last", "even", "ends", "all"] | list[int] = "first"
    n_layers: Count | None = None
    start: Literal["teacher", "random"] = "teacher"
    heads: Count | None = None
    ffn: Count | None = None
    width: Count | None = None
    importance_blocks: Count = 64
    share_layers: bool = False
    embedding_size: Count | None = None
    vocabulary: VocabularySettings = WHOLE


class CorpusSettings(Section):
    """train, dev: files or directories.

    languages, dev_languages: the same by name of a language, instead of `train` and `dev`.
    alpha: a language with n blocks is read in proportion to n ** alpha, see `text.sampling`.
    dev_fraction: share to hold out of the text, or of each language, that has no held-out files.
    txt_documents: how .txt files are divided into documents, see `TxtDocuments`.
    block_size: pieces in a block.
    max_blocks, max_dev_blocks: maximum numbers of blocks, of each language if there are several;
        `None` is no limit.
    mask_probability: share of pieces to predict. "auto" is 0.15 if an objective predicts pieces,
        and 0 otherwise.
    cache: directory of the tokenized corpus; `None` is `cache` in the output directory.
    """

    train: Paths = Field(default_factory=list)
    dev: Paths = Field(default_factory=list)
    languages: Languages = Field(default_factory=dict)
    dev_languages: Languages = Field(default_factory=dict)
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    dev_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    txt_documents: TxtDocuments = "auto"
    block_size: Annotated[int, Field(ge=8)] = 512
    max_blocks: Count | None = None
    max_dev_blocks: Count | None = 500
    mask_probability: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] = "auto"
    cache: str | None = None


class StageSettings(Section):
    """objectives: names of the objectives to sum.

    share: of the run's steps, relative to the shares of the other stages.
    learn_rate: `None` is the rate in [training].
    """

    objectives: Annotated[list[str], Field(min_length=1)]
    share: Annotated[float, Field(gt=0)] = 1.0
    learn_rate: Annotated[float, Field(gt=0)] | None = None


class TrainingSettings(Section):
    """See the comments in `cli.encoder_template`, which explain each setting."""

    seed: int = 0
    epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: Count | None = None
    batch_size: Count | dict[str, Any] = 128
    micro_batch: Count | Literal["auto"] = "auto"
    learn_rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    compile: bool = False
    log_frequency: Count = 20
    eval_frequency: Count = 200
    checkpoint_frequency: Count = 200
    keep_checkpoints: Count = 1
    remove_checkpoints: bool = True
    tensorboard: bool = True

    def batch_sizes(self) -> Schedule:
        """Blocks in each optimizer step."""
        return make_schedule("training.batch_size", self.batch_size)


# Settings that a resumed run may change, since they do not change what it learns. `micro_batch` and
# `compile` change the order of sums, and so the last digits, and the random numbers of dropout.
FREE_ON_RESUME = frozenset(
    {
        "corpus.cache",
        "training.micro_batch",
        "training.compile",
        "training.log_frequency",
        "training.eval_frequency",
        "training.checkpoint_frequency",
        "training.keep_checkpoints",
        "training.remove_checkpoints",
        "training.tensorboard",
    }
)

_SECTIONS: dict[str, type[Section]] = {
    "teacher": TeacherSettings,
    "student": StudentSettings,
    "corpus": CorpusSettings,
    "training": TrainingSettings,
}
# Sections that consist of named blocks.
_BLOCK_SECTIONS = ("objectives", "stages")
# Names of other entries in the log and in the held-out scores. Objectives must not have them.
RESERVED_NAMES = frozenset(
    {
        "step",
        "kind",
        "stage",
        "total",
        "learn_rate",
        "pieces_per_second",
        "student_accuracy",
        "teacher_accuracy",
    }
)
# Name of the only stage of a run whose config has no stages.
ONLY_STAGE = "all"


@dataclass(frozen=True)
class EncoderDistilConfig:
    """A validated config.

    objectives: by name, without any whose weight is 0 at all steps.
    stages: by name, in order; at least one.
    source: the config with all defaults filled in, to save and to compare.
    """

    teacher: TeacherSettings
    student: StudentSettings
    corpus: CorpusSettings
    objectives: dict[str, Objective]
    stages: dict[str, StageSettings]
    training: TrainingSettings
    source: Config

    @property
    def mask_probability(self) -> float:
        """Share of pieces to predict."""
        if self.corpus.mask_probability != "auto":
            return self.corpus.mask_probability
        return 0.15 if any(o.needs.masking for o in self.objectives.values()) else 0.0


def load_config(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> EncoderDistilConfig:
    """Read and validate a config. See `distil_encoder` for the arguments."""
    _, raw = read_config(config, overrides, kind="encoder", complete=_add_blocks)
    for name in raw:
        if name not in (*_SECTIONS, *_BLOCK_SECTIONS):
            raise ConfigError(
                f"[{name}] is not a section of this config. Sections: "
                f"{', '.join(f'[{s}]' for s in (*_SECTIONS, *_BLOCK_SECTIONS))}"
            )
    sections: dict[str, Any] = {
        name: read_section(name, kind, raw.get(name, {})) for name, kind in _SECTIONS.items()
    }
    blocks = {name: _blocks(raw, name) for name in _BLOCK_SECTIONS}
    objectives = {name: make_objective(name, b) for name, b in blocks["objectives"].items()}
    active = {name: objective for name, objective in objectives.items() if objective.is_active}
    stages = {
        name: read_section(f"stages.{name}", StageSettings, block)
        for name, block in blocks["stages"].items()
    }
    source = Config({name: section.model_dump() for name, section in sections.items()})
    source["objectives"] = blocks["objectives"]
    source["stages"] = {name: stage.model_dump() for name, stage in stages.items()}
    if active:
        stages = _active_stages(stages, objectives, active)
    validated = EncoderDistilConfig(objectives=active, stages=stages, source=source, **sections)
    _check(validated)
    return validated


def _add_blocks(config: Config) -> None:
    """Add the blocks that a config may leave out, for overrides to set."""
    config.setdefault("student", {}).setdefault("vocabulary", {})


def _active_stages(
    stages: dict[str, StageSettings], known: Collection[str], active: Collection[str]
) -> dict[str, StageSettings]:
    """Leave out the objectives that are switched off, and stages without any others.

    known, active: names of all objectives, and of the active ones.
    """
    if not stages:
        return {ONLY_STAGE: StageSettings(objectives=list(active))}
    remaining = {}
    for name, stage in stages.items():
        if len({*stage.objectives}) < len(stage.objectives):
            raise ConfigError(f"stages.{name}.objectives = {stage.objectives}: names one twice")
        for objective in stage.objectives:
            if objective not in known:
                raise ConfigError(
                    f"stages.{name}.objectives names {objective!r}, which is no block of "
                    f"[objectives]. There are: {', '.join(known)}"
                )
        summed = [objective for objective in stage.objectives if objective in active]
        if summed:
            remaining[name] = stage.model_copy(update={"objectives": summed})
    idle = [name for name in active if not any(name in s.objectives for s in remaining.values())]
    if idle:
        raise ConfigError(
            f"no stage names objectives.{idle[0]}. Name it in a stage, or set its weight to 0"
        )
    return remaining


def make_schedule(setting: str, value: float | Mapping[str, Any]) -> Schedule:
    """Make a schedule. setting: dotted name, for errors. value: a number, or a schedule's block."""
    if not isinstance(value, Mapping):
        return Schedule(setting, value)
    try:
        schedule = registry.resolve({"schedule": dict(value)})["schedule"]
    except ConfigValidationError as error:
        problems = "; ".join(str(e["msg"]) for e in error.errors or []) or str(error)
        raise ConfigError(f"{setting} = {dict(value)}: {problems}") from error
    except catalogue.RegistryError as error:
        raise ConfigError(f"{setting} = {dict(value)}: {error}") from error
    return Schedule(setting, schedule)


def _blocks(raw: Config, section: str) -> dict[str, dict[str, Any]]:
    """Read the blocks of a section that consists of named blocks."""
    for name, block in raw.get(section, {}).items():
        if not isinstance(block, Mapping):
            raise ConfigError(f"{section}.{name} = {block!r}: must be a block [{section}.NAME]")
    return {name: dict(block) for name, block in raw.get(section, {}).items()}


def _check_corpus(corpus: CorpusSettings) -> None:
    """Check that text is named once, as one corpus or by language. Raises `ConfigError`."""
    for name in (*corpus.languages, *corpus.dev_languages):
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"corpus.languages.{name}: expected letters, digits, - and _ in the name of a "
                "language, because it stands in the names of its scores"
            )
    if corpus.train and corpus.languages:
        raise ConfigError(
            f"corpus.train = {corpus.train}, and corpus.languages names {_list(corpus.languages)}: "
            "expected one of the two. Give the text of corpus.train to a language, or set it to []"
        )
    if corpus.dev and corpus.languages:
        raise ConfigError(
            f"corpus.dev = {corpus.dev}, but corpus.languages names {_list(corpus.languages)}: "
            "name held-out text by language in [corpus.dev_languages], or set corpus.dev to []"
        )
    unknown = [name for name in corpus.dev_languages if name not in corpus.languages]
    if unknown:
        raise ConfigError(
            f"corpus.dev_languages.{unknown[0]}: expected one of the names in [corpus.languages] "
            f"({_list(corpus.languages) or 'there are none'}). Name its text to train on there, too"
        )


def _list(names: Collection[str]) -> str:
    return ", ".join(names)


def _check(config: EncoderDistilConfig) -> None:
    """Check the settings against each other. Raises `ConfigError`."""
    _check_corpus(config.corpus)
    config.training.batch_sizes()  # raises, before any file is read, if the schedule is not valid
    if not config.objectives:
        raise ConfigError(
            "[objectives] has no objective with a weight other than 0: there is nothing to learn"
        )
    if config.training.epochs is None and config.training.max_steps is None:
        raise ConfigError(
            "training.epochs and training.max_steps are both null: set at least one of them"
        )
    for name, objective in config.objectives.items():
        # A slash divides a language from the name of its score.
        if name in RESERVED_NAMES or "/" in name or hasattr(torch.nn.ModuleDict(), name):
            raise ConfigError(
                f"[objectives.{name}]: {name!r} stands for something else in the log or in torch. "
                f"Choose another name, such as {name.replace('/', '_')}_loss"
            )
        if objective.needs.masking and config.mask_probability == 0:
            raise ConfigError(
                f"corpus.mask_probability = 0, but objectives.{name} is computed at masked "
                f'positions. Set it to 0.15 or to "auto"'
            )
