"""The families of encoders, and the names of their parts.

Names are module paths, as transformers spells them. This module imports neither torch nor
transformers: the ONNX export reads weights by the same names.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

# The meaning of an axis of a weight.
# "width": dimensions of the hidden states. "heads": attention heads side by side. "ffn":
# feed-forward neurons of a layer. "embedding": dimensions of the embeddings, which are the
# dimensions of the hidden states unless a projection stands between them. "bias": attention heads
# that all layers share. None: an axis that a student keeps whole.
Axis = Literal["width", "heads", "ffn", "embedding", "bias"] | None


@dataclass(frozen=True)
class LayerParts:
    """Names of the parts of one layer, relative to the layer. The defaults are BERT's.

    query, key, value: linear, from the hidden states to the attention heads.
    attention_out: linear, from the attention heads to the hidden states.
    attention_norm: layer normalization after the first residual sum.
    up, down: linear, from the hidden states to the feed-forward neurons and back.
    output_norm: layer normalization after the second residual sum.
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
    def norms(self) -> dict[str, str]:
        """Names of the layer normalizations, by part."""
        return {"attention_norm": self.attention_norm, "output_norm": self.output_norm}

    @property
    def linears(self) -> dict[str, str]:
        """Names of the linear layers, by part."""
        parts = (field.name for field in fields(self))
        return {part: getattr(self, part) for part in parts if part not in self.norms}

    @property
    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """The meaning of the axes of each part's weight, by the part's name."""
        return {
            **dict.fromkeys((self.query, self.key, self.value), ("heads", "width")),
            self.attention_out: ("width", "heads"),
            self.up: ("ffn", "width"),
            self.down: ("width", "ffn"),
            **dict.fromkeys(self.norms.values(), ("width",)),
        }


@dataclass(frozen=True)
class MaskedLMHeadParts:
    """Names of the parts of a masked-LM head, from the model.

    dense, norm: linear layer and layer normalization, with the activation between them.
    activation: `None` is GELU, which such a head does not keep as an attribute.
    decoder: linear, from the width of the embeddings to the vocabulary.
    """

    dense: str
    norm: str
    decoder: str
    activation: str | None = None

    @property
    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """The meaning of the axes of each part's weight, by the part's name."""
        return {
            self.dense: ("embedding", "width"),
            self.norm: ("embedding",),
            self.decoder: (None, "embedding"),
        }


@dataclass(frozen=True)
class Family:
    """Names of the parts of a model.

    mlm_head: parts of the masked-LM head.
    layers: list of the layers, from the encoder. In ALBERT: list of the groups of layers.
    layer: parts of each layer.
    projection: linear, from the width of the embeddings to the width of the hidden states, from the
        encoder. ALBERT always has it, ELECTRA if the widths differ.
    shares_layers: whether several layers are one module, as in ALBERT. Their parts cannot be cut.
    """

    mlm_head: MaskedLMHeadParts
    layers: str = "encoder.layer"
    layer: LayerParts = LayerParts()
    projection: str | None = None
    shares_layers: bool = False


EMBEDDINGS: dict[str, tuple[Axis, ...]] = {
    "embeddings.word_embeddings": (None, "embedding"),
    "embeddings.position_embeddings": (None, "embedding"),
    "embeddings.token_type_embeddings": (None, "embedding"),
    "embeddings.LayerNorm": ("embedding",),
    "embeddings_project": ("width", None),  # ELECTRA
    "encoder.relative_attention_bias": (None, "bias"),  # MPNet
}

_ROBERTA = Family(
    MaskedLMHeadParts(dense="lm_head.dense", norm="lm_head.layer_norm", decoder="lm_head.decoder")
)
# The families that teachers can be of, by model type. Their ONNX graph is `families.bert`.
FAMILIES: dict[str, Family] = {
    "bert": Family(
        MaskedLMHeadParts(
            dense="cls.predictions.transform.dense",
            activation="cls.predictions.transform.transform_act_fn",
            norm="cls.predictions.transform.LayerNorm",
            decoder="cls.predictions.decoder",
        )
    ),
    "distilbert": Family(
        MaskedLMHeadParts(
            dense="vocab_transform",
            activation="activation",
            norm="vocab_layer_norm",
            decoder="vocab_projector",
        ),
        layers="transformer.layer",
        layer=LayerParts(
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attention_out="attention.out_lin",
            attention_norm="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            output_norm="output_layer_norm",
        ),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family(
        MaskedLMHeadParts(
            dense="generator_predictions.dense",
            activation="generator_predictions.activation",
            norm="generator_predictions.LayerNorm",
            decoder="generator_lm_head",
        ),
        projection="embeddings_project",
    ),
    "mpnet": Family(
        _ROBERTA.mlm_head,
        layer=LayerParts(
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            attention_out="attention.attn.o",
            attention_norm="attention.LayerNorm",
        ),
    ),
    "albert": Family(
        MaskedLMHeadParts(
            dense="predictions.dense",
            activation="predictions.activation",
            norm="predictions.LayerNorm",
            decoder="predictions.decoder",
        ),
        layers="encoder.albert_layer_groups",
        layer=LayerParts(
            query="attention.query",
            key="attention.key",
            value="attention.value",
            attention_out="attention.dense",
            attention_norm="attention.LayerNorm",
            up="ffn",
            down="ffn_output",
            output_norm="full_layer_layer_norm",
        ),
        projection="encoder.embedding_hidden_mapping_in",
        shares_layers=True,
    ),
}
# The families whose students can have fewer attention heads, neurons or dimensions.
CUTTABLE: dict[str, Family] = {
    model_type: family for model_type, family in FAMILIES.items() if not family.shares_layers
}
# The families whose students can become an ALBERT. It has no bias by distance, as MPNet has.
BERT_FORM: dict[str, Family] = {
    model_type: family for model_type, family in CUTTABLE.items() if model_type != "mpnet"
}


def ffn_setting(model_type: str) -> str:
    """The setting in a family's config that says how many feed-forward neurons a layer has."""
    return "hidden_dim" if model_type == "distilbert" else "intermediate_size"
