"""The settings of a distillation run.

Each section is a model whose fields are the settings; whatever is wrong with a config is a
`ConfigError` that names section, key and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from confection import Config, ConfigValidationError
from pydantic import Field

from spacy_distil.distillation.objectives import Objective, make_objective
from spacy_distil.errors import ConfigError
from spacy_distil.settings import Count, Paths, Section, read_section


class TeacherSettings(Section):
    """name: directory or hub name. revision: branch, tag or commit on the hub."""

    name: str
    revision: str | None = None


class StudentSettings(Section):
    """layers: "first", "even" or a list. n_layers: how many; `None` is half of the teacher's."""

    # Copied from layers 0-2 of a 6-layer encoder, a tagger reached UPOS 96.1; from 0, 2, 4 95.4.
    layers: Literal["first", "even"] | list[int] = "first"
    n_layers: Count | None = None


class CorpusSettings(Section):
    """train, dev: files or directories. dev_fraction: held out of `train` where `dev` is empty.

    block_size: pieces in a block. max_blocks, max_dev_blocks: at most so many; `None` is all.
    mask_probability: share of pieces to predict; "auto" is 0.15 where an objective predicts pieces,
    else 0. cache: directory of the tokenised corpus; `None` is `cache` in the output directory.
    """

    train: Paths
    dev: Paths = Field(default_factory=list)
    dev_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    block_size: Annotated[int, Field(ge=8)] = 512
    max_blocks: Count | None = None
    max_dev_blocks: Count | None = 500
    mask_probability: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] = "auto"
    cache: str | None = None


class TrainingSettings(Section):
    """See the comments in `template`, which say what each is for."""

    seed: int = 0
    epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: Count | None = None
    batch_size: Count = 32
    accumulate: Count = 1
    learn_rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    log_frequency: Count = 20
    eval_frequency: Count = 200
    checkpoint_frequency: Count = 200
    keep_checkpoints: Count = 1
    remove_checkpoints: bool = True
    tensorboard: bool = True


# What a resumed run may change: none of it changes the student.
FREE_ON_RESUME = frozenset(
    {
        "corpus.cache",
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


@dataclass(frozen=True)
class DistilConfig:
    """A validated config.

    objectives: by name, those with a weight above 0 only.
    source: what was validated, every default filled in, to be saved and compared.
    """

    teacher: TeacherSettings
    student: StudentSettings
    corpus: CorpusSettings
    objectives: dict[str, Objective]
    training: TrainingSettings
    source: Config

    @property
    def mask_probability(self) -> float:
        if self.corpus.mask_probability != "auto":
            return self.corpus.mask_probability
        return 0.15 if any(o.needs.mlm_head for o in self.objectives.values()) else 0.0


def load_config(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> DistilConfig:
    """Read and validate a config. See `distil_encoder` for the arguments."""
    raw = _read(config, dict(overrides or {}))
    for name in raw:
        if name not in _SECTIONS and name != "objectives":
            raise ConfigError(
                f"[{name}] is not a section of this config. Sections: "
                f"{', '.join(f'[{s}]' for s in (*_SECTIONS, 'objectives'))}"
            )
    sections: dict[str, Any] = {
        name: read_section(name, kind, raw.get(name, {})) for name, kind in _SECTIONS.items()
    }
    objectives = {}
    for name, block in raw.get("objectives", {}).items():
        if not isinstance(block, Mapping):
            raise ConfigError(f"objectives.{name} = {block!r}: must be a block [objectives.NAME]")
        objective = make_objective(name, block)
        if objective.weight > 0:
            objectives[name] = objective
    source = Config({name: section.model_dump() for name, section in sections.items()})
    source["objectives"] = {name: dict(b) for name, b in raw.get("objectives", {}).items()}
    validated = DistilConfig(objectives=objectives, source=source, **sections)
    _check(validated)
    return validated


def _read(config: str | Path | Mapping[str, Any], overrides: dict[str, Any]) -> Config:
    try:
        if isinstance(config, Mapping):
            return Config().from_str(Config(config).to_str(), overrides=overrides)
        path = Path(config)
        if not path.is_file():
            raise ConfigError(
                f"config {path} does not exist. A commented one is written by: "
                f"python -m spacy distil init-config encoder {path}"
            )
        return Config().from_disk(path, overrides=overrides)
    except ConfigValidationError as error:
        problems = [f"{'.'.join(e['loc'])}: {e['msg']}" for e in error.errors or []]
        raise ConfigError("\n".join(problems) or str(error).strip()) from error


def _check(config: DistilConfig) -> None:
    """What no single setting can tell."""
    if not config.objectives:
        raise ConfigError(
            "[objectives] has no objective with a weight above 0: there is nothing to learn"
        )
    if config.training.epochs is None and config.training.max_steps is None:
        raise ConfigError(
            "training.epochs and training.max_steps are both null: set at least one of them"
        )
    for name, objective in config.objectives.items():
        if objective.needs.masking and config.mask_probability == 0:
            raise ConfigError(
                f"corpus.mask_probability = 0, but objectives.{name} is computed at masked "
                f'positions. Set it to 0.15 or to "auto"'
            )
