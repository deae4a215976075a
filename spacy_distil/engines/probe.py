"""Whether a model of transformers can be an encoder here: what its kind says, and what it does."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers

from spacy_distil.errors import ConfigError

KNOWN = "BERT, DistilBERT, RoBERTa, ALBERT, ELECTRA, MPNet, XLM-R, DeBERTa-v2 and ModernBERT"
# How far rounding takes the hidden states of a window from what they are in a batch, as a share of
# the largest; and how little they change at the least where a piece does.
SAME, CHANGED = 1e-3, 1e-6


def refuse_by_kind(name: str, config: transformers.PretrainedConfig) -> None:
    """Raise ConfigError where the kind of a model says that it is no encoder of pieces.

    name: of the model, for the message.
    """
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise _misfit(name, config, "it has a decoder")
    model_class = find_class(config)
    if model_class is None:
        raise _misfit(name, config, "transformers has no encoder of this kind")
    takes = inspect.signature(model_class.forward).parameters
    if "input_ids" not in takes:
        raise _misfit(name, config, f"it takes {next(iter([*takes][1:]), 'no')!r}, not pieces")
    if "attention_mask" not in takes:
        raise _misfit(
            name,
            config,
            "it takes no attention_mask, so that the vectors of a text would depend on the padding "
            "that the rest of its batch brings",
        )
    for setting in ("vocab_size", "hidden_size", "num_hidden_layers"):
        if not isinstance(getattr(config, setting, None), int):
            raise _misfit(name, config, f"its config.json says no {setting!r}")


def refuse_by_deed(name: str, model: transformers.PreTrainedModel) -> None:
    """Raise ConfigError where hidden states are not what an encoder's have to be: as many as there
    are pieces, in each layer; finite; the same whatever the padding; and, from the first piece on,
    knowing all others.

    name: of the model, for the message.
    model: in evaluation mode, on the CPU.
    """
    config = model.config
    long, pad_id = _some_pieces(config), config.pad_token_id or 0
    short = long[:5]
    changed = torch.cat([short[:-1], long[-1:]])
    padded = torch.nn.functional.pad(short, (0, len(long) - len(short)), value=pad_id)
    mask = torch.ones(2, len(long), dtype=torch.long)
    mask[1, len(short) :] = 0
    try:
        with torch.inference_mode():
            alone = _forward(model, short[None])
            together = _forward(model, torch.stack([long, padded]), mask)
            otherwise = _forward(model, changed[None])
    except Exception as error:  # each family raises its own
        raise _misfit(
            name, config, f"it fails on a few pieces with {type(error).__name__}: {error}"
        ) from error
    shape = (len(short), config.hidden_size)
    layers = [tuple(states.shape[1:]) for states in alone]
    if layers != [shape] * (config.num_hidden_layers + 2):
        raise _misfit(
            name,
            config,
            f"it makes hidden states of {sorted(set(layers))} in {len(layers) - 2} layers of "
            f"{shape[0]} pieces, where {shape} was expected in {config.num_hidden_layers}",
        )
    by_itself, beside, other = (states[-1] for states in (alone, together, otherwise))
    scale = by_itself.abs().max()
    if not (beside.isfinite().all() and by_itself.isfinite().all()):
        raise _misfit(name, config, "its hidden states are not finite numbers")
    if (beside[1, : len(short)] - by_itself[0]).abs().max() > SAME * scale:
        raise _misfit(
            name,
            config,
            "the vectors of a text depend on the padding that the rest of its batch brings",
        )
    if (other[0, 0] - by_itself[0, 0]).abs().max() < CHANGED * scale:
        raise _misfit(
            name, config, "it reads one way: its pieces know nothing of those that come after them"
        )
    if not isinstance(config.to_dict().get("max_position_embeddings"), int):
        raise _misfit(name, config, "its config.json says no 'max_position_embeddings'")


def find_class(config: transformers.PretrainedConfig) -> Any:
    """The class of a config's model without heads, `None` where there is none."""
    if type(config) not in transformers.MODEL_MAPPING:
        return None
    found = transformers.MODEL_MAPPING[type(config)]
    # Some have several; the first is what a config without "architectures" gives.
    return found[0] if isinstance(found, tuple) else found


def _forward(
    model: transformers.PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """All hidden states, each (n_windows, length, width), and behind them the last ones, which some
    families norm once more.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return [*output.hidden_states, output.last_hidden_state]


def _some_pieces(config: transformers.PretrainedConfig) -> torch.Tensor:
    """Ids all over the vocabulary that are no special ones, (n_pieces,)."""
    ids = torch.arange(config.vocab_size)
    special = [v for k, v in config.to_dict().items() if k.endswith("_token_id")]
    for each in special:
        if isinstance(each, int):
            ids = ids[ids != each]
    return ids[torch.linspace(0, len(ids) - 1, 9).long()]


def _misfit(name: str, config: transformers.PretrainedConfig, problem: str) -> ConfigError:
    return ConfigError(
        f"name = {name!r} is a {config.model_type!r} model, which cannot be an encoder here: "
        f"{problem}. distil_transformer takes encoders such as {KNOWN}."
    )
