"""Where the model families keep the parts that students are cut from.

Names are those of transformers: paths of modules from the encoder, or from the model for heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# What the places along an axis of a weight stand for.
# "width": dimensions of the hidden states. "heads": attention heads, side by side. "ffn":
# feed-forward neurons of a layer. "embedding": dimensions of the embeddings, which are those of the
# hidden states unless a projection stands between them. "bias": attention heads of all layers.
# None: something that a student keeps whole.
Axis = Literal["width", "heads", "ffn", "embedding", "bias"] | None


@dataclass(frozen=True)
class Layer:
    """The parts of one layer, in its module.

    query, key, value: linear, hidden states to heads.
    attention_out: linear, heads to hidden states.
    attention_norm: layer normalisation after the first residual sum.
    up, down: linear, hidden states to neurons and back.
    output_norm: layer normalisation after the second residual sum.
    """

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"

    @property
    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """What the axes of each part's weight stand for."""
        return {
            **dict.fromkeys((self.query, self.key, self.value), ("heads", "width")),
            self.attention_out: ("width", "heads"),
            self.up: ("ffn", "width"),
            self.down: ("width", "ffn"),
            **dict.fromkeys((self.attention_norm, self.output_norm), ("width",)),
        }


@dataclass(frozen=True)
class Family:
    """Where the parts of a model are.

    layers: path of the list of layers.
    layer: the parts of each.
    head: parts of the masked-LM head, and what the axes of their weights stand for.
    """

    layers: str = "encoder.layer"
    layer: Layer = field(default_factory=Layer)
    head: dict[str, tuple[Axis, ...]] = field(default_factory=dict)


EMBEDDINGS: dict[str, tuple[Axis, ...]] = {
    "embeddings.word_embeddings": (None, "embedding"),
    "embeddings.position_embeddings": (None, "embedding"),
    "embeddings.token_type_embeddings": (None, "embedding"),
    "embeddings.LayerNorm": ("embedding",),
    "embeddings_project": ("width", None),  # ELECTRA
    "encoder.relative_attention_bias": (None, "bias"),  # MPNet
}

_ROBERTA = Family(
    head={
        "lm_head.dense": ("embedding", "width"),
        "lm_head.layer_norm": ("embedding",),
        "lm_head.decoder": (None, "embedding"),
    }
)
CUTTABLE: dict[str, Family] = {
    "bert": Family(
        head={
            "cls.predictions.transform.dense": ("embedding", "width"),
            "cls.predictions.transform.LayerNorm": ("embedding",),
            "cls.predictions.decoder": (None, "embedding"),
        }
    ),
    "distilbert": Family(
        layers="transformer.layer",
        layer=Layer(
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attention_out="attention.out_lin",
            attention_norm="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            output_norm="output_layer_norm",
        ),
        head={
            "vocab_transform": ("embedding", "width"),
            "vocab_layer_norm": ("embedding",),
            "vocab_projector": (None, "embedding"),
        },
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family(
        head={
            "generator_predictions.dense": ("embedding", "width"),
            "generator_predictions.LayerNorm": ("embedding",),
            "generator_lm_head": (None, "embedding"),
        }
    ),
    "mpnet": Family(
        layer=Layer(
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            attention_out="attention.attn.o",
            attention_norm="attention.LayerNorm",
        ),
        head=_ROBERTA.head,
    ),
}


def ffn_setting(model_type: str) -> str:
    """The setting in a family's config that says how many feed-forward neurons a layer has."""
    return "hidden_dim" if model_type == "distilbert" else "intermediate_size"
