"""The settings of an encoder, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spacy_distil.encoding import PIECES_FROM, POOLINGS, PiecesFrom
from spacy_distil.encoding.pooling import DOC_POOLINGS, DocPooling, PoolingName
from spacy_distil.engines.files import MODELS, EngineName
from spacy_distil.errors import ConfigError

# The smallest values of settings that are numbers or null.
MINIMUM_SETTINGS = {"window": 8, "overlap": 0, "max_batch_pieces": 1, "layer": 1, "threads": 1}
# The settings that each engine takes. The shim uses the others.
ENGINE_SETTINGS: dict[EngineName, tuple[str, ...]] = {
    "torch": (
        "layer",
        "device",
        "mixed_precision",
        "dropout",
        "attention_dropout",
        "gradient_checkpointing",
    ),
    "onnx": ("threads",),
}


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of `spacy-distil.DistilTransformer.v1`, which documents them.

    Raises ConfigError for a value that cannot work.
    """

    name: str
    engine: EngineName
    window: int | None
    overlap: int
    max_batch_pieces: int | None
    pooling: PoolingName
    doc_pooling: DocPooling | None
    pieces_from: PiecesFrom
    layer: int | None
    mixed_precision: bool
    dropout: float | None
    attention_dropout: float | None
    gradient_checkpointing: bool
    device: str
    threads: int | None
    frozen: bool
    learn_rate_scale: float
    layer_decay: float

    def __post_init__(self) -> None:
        if self.engine not in MODELS:
            raise ConfigError(f"engine = {self.engine!r}: expected one of {', '.join(MODELS)}.")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling = {self.pooling!r}: expected one of {', '.join(POOLINGS)}.")
        if self.doc_pooling is not None and self.doc_pooling not in DOC_POOLINGS:
            raise ConfigError(
                f"doc_pooling = {self.doc_pooling!r}: expected null or one of "
                f"{', '.join(DOC_POOLINGS)}."
            )
        if self.pieces_from not in PIECES_FROM:
            raise ConfigError(
                f"pieces_from = {self.pieces_from!r}: expected one of {', '.join(PIECES_FROM)}."
            )
        for setting, minimum in MINIMUM_SETTINGS.items():
            value = getattr(self, setting)
            if value is not None and value < minimum:
                raise ConfigError(f"{setting} = {value}: expected at least {minimum}.")
        if self.learn_rate_scale < 0:
            raise ConfigError(f"learn_rate_scale = {self.learn_rate_scale}: expected 0 or more.")
        for setting in ("dropout", "attention_dropout"):
            share = getattr(self, setting)
            if share is not None and not 0 <= share < 1:
                raise ConfigError(f"{setting} = {share}: expected null, or 0 to below 1.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay = {self.layer_decay}: expected above 0, at most 1.")

    @property
    def for_engine(self) -> dict[str, Any]:
        """The settings that the engine takes."""
        return {name: getattr(self, name) for name in ENGINE_SETTINGS[self.engine]}
