"""What settings change about an encoder before it is built."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from spacy_distil.errors import ConfigError

# What families call the dropout of hidden states, and that of attention probabilities.
DROPOUTS = ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout")
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")


@dataclass(frozen=True)
class EncoderChanges:
    """None leaves the encoder as it is.

    layer: the uppermost layer that is kept, 1 being the lowest.
    dropout: share of hidden states dropped in training.
    attention_dropout: share of attention probabilities dropped in training.
    """

    layer: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None

    def apply(self, config: transformers.PretrainedConfig) -> None:
        """Change an encoder's config. Raises ConfigError where it has no such setting."""
        if self.layer is not None:
            _keep_layers(config, self.layer)
        if self.dropout is not None:
            _set(config, DROPOUTS, "dropout", self.dropout)
        if self.attention_dropout is not None:
            _set(config, ATTENTION_DROPOUTS, "attention_dropout", self.attention_dropout)


UNCHANGED = EncoderChanges()


def _keep_layers(config: transformers.PretrainedConfig, n_layers: int) -> None:
    available = config.num_hidden_layers
    if n_layers > available:
        raise ConfigError(
            f"layer = {n_layers}: this encoder has {available} layers. Expected a number from 1 to "
            f"{available}, or null for the last."
        )
    if n_layers < available and getattr(config, "num_hidden_groups", 1) > 1:
        raise ConfigError(
            f"layer = {n_layers}: this {config.model_type!r} encoder shares the weights of "
            f"{config.num_hidden_groups} groups of layers among {available}, which cannot be cut. "
            f"Leave layer null, or set it to {available}."
        )
    config.num_hidden_layers = n_layers
    if getattr(config, "layer_types", None):  # ModernBERT's, of each layer
        config.layer_types = config.layer_types[:n_layers]


def _set(
    config: transformers.PretrainedConfig, names: tuple[str, ...], setting: str, share: float
) -> None:
    there = [name for name in names if hasattr(config, name)]
    if not there:
        raise ConfigError(
            f"{setting} = {share}: a {config.model_type!r} encoder has no such setting. "
            "Leave it null."
        )
    for name in there:
        setattr(config, name, share)
