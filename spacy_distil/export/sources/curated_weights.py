"""The encoders of curated-transformers as models of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from curated_transformers.models.albert import AlbertEncoder
from curated_transformers.models.bert import BertEncoder
from curated_transformers.models.roberta import RobertaEncoder

from spacy_distil.errors import WeightsError

if TYPE_CHECKING:
    import torch
    import transformers

# XLM-R and CamemBERT are RoBERTa with other vocabularies.
FAMILIES = {BertEncoder: "bert", RobertaEncoder: "roberta", AlbertEncoder: "albert"}
# Classes of activations to the names of transformers.
ACTIVATIONS = {"ReLU": "relu", "GELU": "gelu", "GeluNew": "gelu_new"}

_EMBEDDINGS = ((r"^embeddings\.inner\.", "embeddings."), (r"\.layer_norm\.", ".LayerNorm."))
# Parts of names, there and here.
_NAMES = {
    "bert": (
        *_EMBEDDINGS,
        (r"^layers\.", "encoder.layer."),
        (r"\.mha\.(query|key|value)\.", r".attention.self.\1."),
        (r"\.mha\.output\.", ".attention.output.dense."),
        (r"\.attn_output_layernorm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.intermediate\.", ".intermediate.dense."),
        (r"\.ffn\.output\.", ".output.dense."),
        (r"\.ffn_output_layernorm\.", ".output.LayerNorm."),
    ),
    "albert": (
        *_EMBEDDINGS,
        (r"^embeddings\.projection\.", "encoder.embedding_hidden_mapping_in."),
        (r"^groups\.", "encoder.albert_layer_groups."),
        (r"\.group_layers\.", ".albert_layers."),
        (r"\.mha\.(query|key|value)\.", r".attention.\1."),
        (r"\.mha\.output\.", ".attention.dense."),
        (r"\.attn_output_layernorm\.", ".attention.LayerNorm."),
        (r"\.ffn\.intermediate\.", ".ffn."),
        (r"\.ffn\.output\.", ".ffn_output."),
        (r"\.ffn_output_layernorm\.", ".full_layer_layer_norm."),
    ),
}
_NAMES["roberta"] = _NAMES["bert"]


def to_transformers(encoder: torch.nn.Module) -> transformers.PreTrainedModel:
    """Build the model of transformers with the weights of a curated encoder.

    encoder: of one of FAMILIES.
    """
    import transformers

    config = read_config(encoder)
    model = transformers.AutoModel.from_config(config, add_pooling_layer=False)
    missing, unexpected = model.load_state_dict(
        dict(_convert(encoder.state_dict(), config)), strict=False
    )
    absent = {*missing} & {name for name, _ in model.named_parameters()}
    if absent or unexpected:
        raise WeightsError(
            f"The weights of {type(encoder).__name__} do not fit a {config.model_type!r} model of "
            f"transformers {transformers.__version__}: {sorted(absent | {*unexpected})}."
        )
    return model.eval()


def read_config(encoder: Any) -> transformers.PretrainedConfig:
    """Read the settings of a curated encoder from its layers."""
    import transformers

    family = FAMILIES[type(encoder)]
    embeddings = encoder.embeddings.inner if family == "roberta" else encoder.embeddings
    layers = encoder.groups[0].group_layers if family == "albert" else encoder.layers
    layer, width = layers[0], embeddings.word_embeddings.embedding_dim
    config = {
        "vocab_size": embeddings.word_embeddings.num_embeddings,
        "max_position_embeddings": embeddings.position_embeddings.num_embeddings,
        "type_vocab_size": embeddings.token_type_embeddings.num_embeddings,
        "hidden_size": layer.mha.model_dim,
        "num_attention_heads": layer.mha.num_heads,
        "intermediate_size": layer.ffn.intermediate.out_features,
        "hidden_act": ACTIVATIONS[type(layer.ffn.activation).__name__],
        "layer_norm_eps": layer.ffn_output_layernorm.eps,
        "hidden_dropout_prob": layer.ffn_output_dropout.p,
        "attention_probs_dropout_prob": layer.mha.attention.dropout.p,
        "pad_token_id": encoder.padding_idx,
    }
    if family == "albert":
        config |= {
            "embedding_size": width,
            "num_hidden_layers": encoder.num_hidden_layers,
            "num_hidden_groups": len(encoder.groups),
            "inner_group_num": len(layers),
        }
    else:
        config["num_hidden_layers"] = len(layers)
    return transformers.AutoConfig.for_model(family, **config)


def _convert(
    weights: Mapping[str, torch.Tensor], config: transformers.PretrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    names = _NAMES[config.model_type]
    for name, weight in weights.items():
        parts = {name: weight}
        if ".mha.input." in name:
            kinds = ("query", "key", "value")
            parts = {
                name.replace(".input.", f".{kind}."): part
                for kind, part in zip(kinds, weight.chunk(3), strict=True)
            }
        for old, part in parts.items():
            new = old
            for pattern, replacement in names:
                new = re.sub(pattern, replacement, new)
            yield new, part
    if config.model_type == "albert" and config.embedding_size == config.hidden_size:
        # transformers projects the embeddings even then.
        import torch

        yield "encoder.embedding_hidden_mapping_in.weight", torch.eye(config.hidden_size)
        yield "encoder.embedding_hidden_mapping_in.bias", torch.zeros(config.hidden_size)
