"""Change the config of an encoder before it is built."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from spacy_distil.engines.config_check import ATTENTION_DROPOUTS, DROPOUTS
from spacy_distil.errors import ConfigError

# Settings of what a forward pass returns, and how. They leave the numbers as they are. Chunks, too,
# but windows whose length they do not divide fail.
RUNTIME = {
    "return_dict": True,
    "torchscript": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}


@dataclass(frozen=True)
class EncoderChanges:
    """Changes that the settings of the component ask for. None leaves a value as it is.

    layer: the uppermost layer that is kept, 1 being the lowest.
    dropout: share of hidden states dropped in training.
    attention_dropout: share of attention probabilities dropped in training.
    """

    layer: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None

    def apply(self, config: transformers.PretrainedConfig) -> None:
        """Change an encoder's config. Raises ConfigError if its family has no such setting."""
        if self.layer is not None:
            _keep_layers(config, self.layer)
        if self.dropout is not None:
            _set(config, DROPOUTS, "dropout", self.dropout)
        if self.attention_dropout is not None:
            _set(config, ATTENTION_DROPOUTS, "attention_dropout", self.attention_dropout)


UNCHANGED = EncoderChanges()


def fix_runtime_choices(config: transformers.PretrainedConfig) -> None:
    """Fix the settings that some families choose at run time, so that the same input always gives
    the same output.
    """
    if hasattr(config, "reference_compile"):
        # If triton is installed, ModernBERT compiles itself for each new shape of a batch.
        config.reference_compile = False
    if getattr(config, "attention_type", None) == "block_sparse":
        # BigBird switches to full attention for good at the first batch of short windows.
        config.attention_type = "original_full"
    for name, value in RUNTIME.items():
        if getattr(config, name, value) != value:
            setattr(config, name, value)
    if config.model_type == "modernbert":
        _read_newer_modernbert(config)


def _read_newer_modernbert(config: transformers.PretrainedConfig) -> None:
    """Let transformers 4 read the config of a ModernBERT that transformers 5 wrote. Otherwise it
    would silently use its own defaults.
    """
    rope = getattr(config, "rope_parameters", None)
    if not rope or not hasattr(config, "global_rope_theta"):
        return
    config.global_rope_theta = rope["full_attention"]["rope_theta"]
    config.local_rope_theta = rope["sliding_attention"]["rope_theta"]
    kinds = config.layer_types
    is_global = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    every = is_global[1] if len(is_global) > 1 else len(kinds)
    if is_global != list(range(0, len(kinds), every)):
        raise ConfigError(
            f"layer_types of this 'modernbert' encoder are {kinds}: transformers "
            f"{transformers.__version__} supports global attention in every n-th layer only. "
            "Install transformers 5."
        )
    config.global_attn_every_n_layers = every


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
    if getattr(config, "layer_types", None):  # ModernBERT has one for each layer
        config.layer_types = config.layer_types[:n_layers]


def _set(
    config: transformers.PretrainedConfig, names: tuple[str, ...], setting: str, share: float
) -> None:
    known = [name for name in names if hasattr(config, name)]
    if not known:
        raise ConfigError(
            f"{setting} = {share}: a {config.model_type!r} encoder has no such setting. "
            "Leave it null."
        )
    for name in known:
        setattr(config, name, share)
