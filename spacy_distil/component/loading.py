"""Load an encoder and its tokenizer, and check that they fit the settings and each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from spacy_distil.component.settings import EncoderSettings
from spacy_distil.encoding import PieceTokenizer
from spacy_distil.engines import Engine, TrainableEngine
from spacy_distil.engines.config_check import require_settings
from spacy_distil.engines.files import (
    CONFIG,
    TOKENIZER,
    check_engine,
    longest_window,
    parse_config,
)
from spacy_distil.errors import TRAINING, ConfigError, WeightsError, require_all
from spacy_distil.runs.digests import Content, Parts

if TYPE_CHECKING:
    from spacy_distil.engines.torch import TorchEngine


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with weights and tokenizer.

    engine: runs the encoder.
    window: most pieces in a window, special ones included.
    pad_id: the piece that pads the shorter windows of a batch.
    config: the encoder's `config.json`, in the format of transformers.
    """

    engine: Engine
    tokenizer: PieceTokenizer
    window: int
    pad_id: int
    config: Mapping[str, Any]

    @property
    def n_layers(self) -> int:
        """Number of layers. Raises WeightsError if the config does not say."""
        return _count_layers(self.engine, self.config)

    @cached_property
    def pieces(self) -> np.ndarray:
        """The text of each piece, by id: (n_vocab,) str."""
        vocab = self.tokenizer.read_vocabulary()
        # The encoder may have more pieces than the tokenizer.
        n_vocab = max(self.config["vocab_size"], max(vocab.values(), default=-1) + 1)
        pieces = np.full(n_vocab, "", dtype=object)
        pieces[[*vocab.values()]] = [*vocab]
        return pieces

    def to_parts(self) -> dict[str, Parts]:
        """Return the parts of each file of the saved encoder, by name. They share the memory of the
        weights.
        """
        return {**self.engine.to_parts(), TOKENIZER: [self.tokenizer.to_str().encode("utf8")]}


def load_by_name(settings: EncoderSettings) -> LoadedEncoder:
    """Load an encoder for the torch engine by directory or hub name."""
    engine_class = _torch_engine()
    from spacy_distil.engines.pretrained import load_tokenizer

    engine = engine_class.from_name(settings.name, **settings.for_engine)
    config = json.loads(engine.model.config.to_json_string())
    return _check(engine, load_tokenizer(settings.name), config, settings)


def load_files(files: Mapping[str, Content], settings: EncoderSettings) -> LoadedEncoder:
    """Load an encoder from its files, by name, as `read_files` returns them.

    Raises WeightsError if it cannot be used.
    """
    check_engine(files, settings.engine)
    config = parse_config(files)
    require_settings(config, {"vocab_size"}, {"max_position_embeddings"})
    engine: Engine
    if settings.engine == "onnx":
        from spacy_distil.engines.frozen import load_frozen

        engine = load_frozen(files, **settings.for_engine)
    else:
        engine = _torch_engine().from_files(files, **settings.for_engine)
    return _check(engine, PieceTokenizer.from_str(bytes(files[TOKENIZER])), config, settings)


def _check(
    engine: Engine, tokenizer: PieceTokenizer, config: dict[str, Any], settings: EncoderSettings
) -> LoadedEncoder:
    """Raise WeightsError or ConfigError if engine, tokenizer and settings do not fit together."""
    if tokenizer.largest_id >= config["vocab_size"]:
        raise WeightsError(
            f"The tokenizer has pieces up to number {tokenizer.largest_id:,}, but the encoder has "
            f"embeddings for {config['vocab_size']:,} only, from 0. They do not belong together."
        )
    longest = longest_window(config)
    window = settings.window or longest
    if window > longest:
        advice = ""
        if settings.engine == "onnx":
            advice = (
                " 'spacy distil quantize' leaves out what is beyond the window of its pipeline: "
                "for a longer one, set it there and quantize again."
            )
        raise ConfigError(
            f"window = {window}: this encoder takes at most {longest} pieces at once. "
            f"Set window to {longest} or less; longer docs are split into windows.{advice}"
        )
    if settings.overlap > (window - tokenizer.n_special) // 2:
        raise ConfigError(
            f"overlap = {settings.overlap}: expected at most half of the window of {window} pieces "
            f"without its {tokenizer.n_special} special ones."
        )
    if settings.pooling == "cls" and not tokenizer.prefix:
        raise ConfigError(
            "pooling = 'cls': the tokenizer of this encoder puts no special piece, such as [CLS], "
            "before a text. Set another pooling, such as 'mean'."
        )
    if settings.layer is not None:
        n_layers = _count_layers(engine, config)
        if n_layers != settings.layer:  # the torch engine has left out the layers above
            raise ConfigError(
                f"layer = {settings.layer}: the graph of this encoder ends with layer {n_layers}. "
                f"Set layer to {n_layers} or null, or make another graph with 'spacy distil "
                "quantize', from a pipeline with this layer."
            )
    return LoadedEncoder(
        engine, tokenizer, window, pad_id=config.get("pad_token_id") or 0, config=config
    )


def _count_layers(engine: Engine, config: Mapping[str, Any]) -> int:
    if isinstance(engine, TrainableEngine):
        return engine.n_layers
    for name in ("n_layers", "num_hidden_layers"):  # the first is DistilBERT's name
        if name in config:
            return int(config[name])
    raise WeightsError(
        f"{CONFIG} does not say how many layers this {config['model_type']} encoder has: "
        'it has neither "num_hidden_layers" nor "n_layers". Add the first of them.'
    )


def _torch_engine() -> type[TorchEngine]:
    require_all(TRAINING, purpose="An encoder that is not converted to ONNX")
    from spacy_distil.engines.torch import TorchEngine

    return TorchEngine
