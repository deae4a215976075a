"""Refuse a `config.json` whose values cannot be right, before anything is built from it.

transformers takes most of them: it fails deep inside, or computes other vectors without a word.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from spacy_distil.errors import WeightsError

# Names that families use for the dropout of hidden states and of attention probabilities.
DROPOUTS = ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout")
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")

# The least and the most that a size can be, by the names that families use.
_WIDTH, _HEADS, _LAYERS = (1, 1_000_000), (1, 10_000), (1, 1_000)
_SIZES = {
    "vocab_size": (1, 10_000_000),
    "max_position_embeddings": (1, 10_000_000),
    "type_vocab_size": (0, 1_000),
    **dict.fromkeys(("hidden_size", "dim", "d_model", "embedding_size"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_heads"), _HEADS),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_hidden_groups"), _LAYERS),
    **dict.fromkeys(("inner_group_num", "global_attn_every_n_layers"), _LAYERS),
    "local_attention": (1, 10_000_000),
}
EPSILONS = ("layer_norm_eps", "norm_eps", "layer_norm_epsilon", "rms_norm_eps")
ACTIVATIONS = ("hidden_act", "activation", "hidden_activation")
# Settings of a decoder. `is_decoder` alone hides from each piece those that follow.
_DECODER = ("is_decoder", "is_encoder_decoder", "add_cross_attention")
# BERT and its kin leave out positions if they do not know their kind.
_POSITIONS = ("absolute", "relative_key", "relative_key_query", "rotary")


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise WeightsError, which names setting and value, for the first that cannot be right.

    config: content of a `config.json`, as it was written.
    """
    for name, (least, most) in _SIZES.items():
        if name in config and not (_is_int(config[name]) and least <= config[name] <= most):
            raise _wrong(config, name, f"a whole number from {least:,} to {most:,}")
    for name in EPSILONS:
        if name in config and not (_is_number(config[name]) and 0 < config[name] < 1):
            raise _wrong(config, name, "a number above 0 and below 1")
    for name in (*DROPOUTS, *ATTENTION_DROPOUTS):
        if name in config and not (_is_number(config[name]) and 0 <= config[name] < 1):
            raise _wrong(config, name, "a number from 0 to below 1")
    for name in ACTIVATIONS:
        if name in config and not isinstance(config[name], str):
            raise _wrong(config, name, 'the name of a function, such as "gelu"')
    for name in _DECODER:
        if config.get(name):
            raise _wrong(config, name, "false: an encoder has no decoder")
    if config.get("quantization_config"):
        raise _wrong(
            config,
            "quantization_config",
            "weights that are floating-point numbers. Take the model that it was made from",
        )
    # ModernBERT has only one kind, and does not read the setting.
    positions = config.get("position_embedding_type") or "absolute"
    if config.get("model_type") != "modernbert" and positions not in _POSITIONS:
        raise _wrong(config, "position_embedding_type", f"one of {', '.join(_POSITIONS)}")
    padding = config.get("pad_token_id")
    if padding is not None and not (
        _is_int(padding) and 0 <= padding < config.get("vocab_size", math.inf)
    ):
        raise _wrong(config, "pad_token_id", 'null, or a whole number from 0 to below "vocab_size"')


def require_settings(config: Mapping[str, Any], *alternatives: Collection[str]) -> None:
    """Raise WeightsError for the first setting that is missing.

    alternatives: the names that families use for each.
    """
    for names in alternatives:
        if not any(name in config for name in names):
            named = " or ".join(f'"{name}"' for name in sorted(names))
            raise WeightsError(
                f"config.json has no {named}. It is incomplete: save or copy the model again."
            )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _wrong(config: Mapping[str, Any], name: str, expected: str) -> WeightsError:
    value = repr(config[name])
    shown = value if len(value) <= 60 else f"{value[:60]}..."
    return WeightsError(
        f'config.json has "{name}": {shown}, expected {expected}. It is damaged, or was changed by '
        "hand: save or copy the model again, or correct it."
    )
