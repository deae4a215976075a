"""Check whether a model of transformers can be an encoder here: its kind, and its outputs.

An encoder returns one hidden state per piece. Padding must not change it, and it must depend on the
pieces that follow.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers

from spacy_distil.errors import ConfigError

KNOWN = "BERT, DistilBERT, RoBERTa, ALBERT, ELECTRA, MPNet, XLM-R, DeBERTa-v2 and ModernBERT"
# Relative to the largest hidden state: the most that rounding changes if a window is in another
# batch, and the least that another piece in the window changes.
SAME, CHANGED = 1e-3, 1e-6


def check_kind(name: str, config: transformers.PretrainedConfig) -> None:
    """Raise ConfigError if a model's config and class show that it is not an encoder of pieces.

    name: of the model, for the message.
    """
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise _misfit(name, config, "it has a decoder")
    model_class = find_class(config)
    if model_class is None:
        raise _misfit(name, config, "transformers has no encoder of this kind")
    inputs = inspect.signature(model_class.forward).parameters
    if "input_ids" not in inputs:
        raise _misfit(name, config, f"it takes {next(iter([*inputs][1:]), 'no')!r}, not pieces")
    if "attention_mask" not in inputs:
        raise _misfit(
            name,
            config,
            "it takes no attention_mask, so the vectors of a text would depend on the padding in "
            "its batch",
        )
    for setting in ("vocab_size", "hidden_size", "num_hidden_layers"):
        if getattr(config, setting, None) is None:
            raise _misfit(name, config, f"its config.json has no {setting!r}")


def check_outputs(name: str, model: transformers.PreTrainedModel) -> None:
    """Raise ConfigError if a model's hidden states of a few pieces do not fit an encoder.

    Each layer must return one finite vector per piece. The last vectors must not depend on padding,
    and the first of them must depend on the last piece.

    name: of the model, for the message.
    model: in evaluation mode, on the CPU.
    """
    config = model.config
    long, pad_id = _choose_pieces(config), config.pad_token_id or 0
    short = long[:5]
    changed = torch.cat([short[:-1], long[-1:]])
    padded = torch.nn.functional.pad(short, (0, len(long) - len(short)), value=pad_id)
    mask = torch.ones(2, len(long), dtype=torch.long)
    mask[1, len(short) :] = 0
    try:
        with torch.inference_mode():
            alone_states = _forward(model, short[None])
            batch_states = _forward(model, torch.stack([long, padded]), mask)
            changed_states = _forward(model, changed[None])
    except Exception as error:  # each family raises its own
        raise _misfit(
            name, config, f"it fails on a few pieces with {type(error).__name__}: {error}"
        ) from error
    shape = (len(short), config.hidden_size)
    shapes = [tuple(states.shape[1:]) for states in alone_states]
    if shapes != [shape] * (config.num_hidden_layers + 2):
        raise _misfit(
            name,
            config,
            f"it returns hidden states of {sorted(set(shapes))} in {len(shapes) - 2} layers for "
            f"{shape[0]} pieces, expected {shape} in {config.num_hidden_layers}",
        )
    alone, batch, other = (s[-1] for s in (alone_states, batch_states, changed_states))
    scale = alone.abs().max()
    if not (batch.isfinite().all() and alone.isfinite().all()):
        raise _misfit(name, config, "its hidden states are not finite numbers")
    if (batch[1, : len(short)] - alone[0]).abs().max() > SAME * scale:
        raise _misfit(name, config, "the vectors of a text depend on the padding in its batch")
    if (other[0, 0] - alone[0, 0]).abs().max() < CHANGED * scale:
        raise _misfit(
            name,
            config,
            "it reads in one direction: the vector of a piece does not depend on the pieces that "
            "follow",
        )
    if not isinstance(config.to_dict().get("max_position_embeddings"), int):
        raise _misfit(name, config, "its config.json has no 'max_position_embeddings'")


def find_class(config: transformers.PretrainedConfig) -> Any:
    """Return the class of a config's model without heads, or None if there is none."""
    if type(config) not in transformers.MODEL_MAPPING:
        return None
    model_class = transformers.MODEL_MAPPING[type(config)]
    # Some configs have several classes. The first is the default.
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _forward(
    model: transformers.PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Compute the hidden states of all layers, each (n_windows, length, width).

    The last hidden states come again at the end, because in some families a norm follows the last
    layer.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return [*output.hidden_states, output.last_hidden_state]


def _choose_pieces(config: transformers.PretrainedConfig) -> torch.Tensor:
    """Return ids from all over the vocabulary that are not special, (n_pieces,)."""
    ids = torch.arange(config.vocab_size)
    special = [v for k, v in config.to_dict().items() if k.endswith("_token_id")]
    for special_id in special:
        if isinstance(special_id, int):
            ids = ids[ids != special_id]
    return ids[torch.linspace(0, len(ids) - 1, 9).long()]


def _misfit(name: str, config: transformers.PretrainedConfig, problem: str) -> ConfigError:
    return ConfigError(
        f"name = {name!r} is a {config.model_type!r} model, which cannot be an encoder here: "
        f"{problem}. distil_transformer takes encoders such as {KNOWN}."
    )
