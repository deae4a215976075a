"""Turn a student of BERT's form into one of ALBERT's: shared layers, factorized embeddings.

ALBERT normalizes embeddings in their own, smaller space, and maps them to the width of the hidden
states afterwards. BERT normalizes them in the width of the hidden states. Both are the same for
embeddings that lie in a subspace, see `factorize`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spacy_distil.engines.config_check import ATTENTION_DROPOUTS, DROPOUTS
from spacy_distil.engines.files import first_position
from spacy_distil.students.families import FAMILIES, ffn_setting
from spacy_distil.students.masked_lm_heads import embedding_projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from spacy_distil.students.shapes import StudentShape

ALBERT = FAMILIES["albert"]


class Embeddings(NamedTuple):
    """The embeddings of an encoder: norm(piece + position + type) @ projection.T + bias.

    pieces, positions, types: (n, size), one row for each. Positions begin with a window's first.
    norm_weight, norm_bias: (size,), of the layer normalization.
    projection, bias: (width, size) and (width,).
    """

    pieces: Tensor
    positions: Tensor
    types: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    projection: Tensor
    bias: Tensor


def albert_config(config: PretrainedConfig, shape: StudentShape) -> PretrainedConfig:
    """Make the config of a student of ALBERT's form.

    config: of a student of BERT's form, with all other settings of the shape.
    """
    from transformers import AlbertConfig

    def first(*names: str) -> Any:
        return next(getattr(config, name) for name in names if hasattr(config, name))

    return AlbertConfig(
        vocab_size=config.vocab_size,
        embedding_size=shape.embedding_size or getattr(config, "embedding_size", shape.width),
        hidden_size=shape.width,
        num_hidden_layers=len(shape.layers),
        num_hidden_groups=1 if shape.share_layers else len(shape.layers),
        num_attention_heads=shape.heads,
        intermediate_size=getattr(config, ffn_setting(config.model_type)),
        hidden_act=first("hidden_act", "activation"),
        hidden_dropout_prob=first(*DROPOUTS),
        attention_probs_dropout_prob=first(*ATTENTION_DROPOUTS),
        max_position_embeddings=config.max_position_embeddings - first_position(config.to_dict()),
        type_vocab_size=getattr(config, "type_vocab_size", 1),
        initializer_range=config.initializer_range,
        layer_norm_eps=getattr(config, "layer_norm_eps", 1e-12),  # DistilBERT's has no setting
        tie_word_embeddings=config.tie_word_embeddings,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )


def random_albert(config: PretrainedConfig, *, head: bool) -> PreTrainedModel:
    """Make an ALBERT with random weights and without pooler. head: for masked LM."""
    from transformers import AlbertForMaskedLM, AlbertModel

    return AlbertForMaskedLM(config) if head else AlbertModel(config, add_pooling_layer=False)


@torch.no_grad()
def as_albert(
    student: PreTrainedModel, shape: StudentShape, counts: np.ndarray | None = None
) -> PreTrainedModel:
    """Make an ALBERT with the weights of a student of BERT's form.

    Without factorized embeddings and with layers of its own, it computes the same. Shared layers
    start as the lowest one. With factorized embeddings, there is no masked-LM head: it would lead
    to the larger embeddings.

    counts: of pieces, see `factorize`.
    """
    source = student.base_model
    has_head = source is not student and shape.embedding_size is None
    embeddings = read_embeddings(source)
    if shape.embedding_size is not None:
        embeddings = factorize(embeddings, shape.embedding_size, counts)
    model = random_albert(albert_config(student.config, shape), head=has_head)
    model.base_model.load_state_dict(
        {**_embedding_weights(embeddings), **_layer_weights(source, model.config.num_hidden_groups)}
    )
    if has_head:
        parts = FAMILIES[student.config.model_type].mlm_head
        for name in ("dense", "norm", "decoder"):
            old = student.get_submodule(getattr(parts, name))
            model.get_submodule(getattr(ALBERT.mlm_head, name)).load_state_dict(old.state_dict())
    return model


def read_embeddings(encoder: PreTrainedModel) -> Embeddings:
    """Read the embeddings of an encoder of BERT's form. They share memory with it."""
    parts: Any = encoder.embeddings
    pieces: Tensor = parts.word_embeddings.weight
    positions: Tensor = parts.position_embeddings.weight
    size = pieces.shape[1]
    projection = embedding_projection(encoder)
    return Embeddings(
        pieces,
        positions[first_position(encoder.config.to_dict()) :],
        # DistilBERT has none.
        parts.token_type_embeddings.weight
        if hasattr(parts, "token_type_embeddings")
        else pieces.new_zeros(1, size),
        parts.LayerNorm.weight,
        parts.LayerNorm.bias,
        torch.eye(size) if projection is None else projection.weight,
        torch.zeros(size) if projection is None else projection.bias,
    )


def factorize(embeddings: Embeddings, size: int, counts: np.ndarray | None = None) -> Embeddings:
    """Approximate embeddings by smaller ones, which are normalized in the smaller space.

    Layer normalization ignores the mean of a row, so rows are centred first. They are then written
    in an orthonormal basis of size - 1 directions, those with the largest mean square over pairs of
    a piece and a position. Pieces count as often as they occur: of MiniLM, with half of the size,
    hidden states then had a cosine of 0.97 to the teacher's, against 0.73. The basis is turned so
    that coordinates have a mean of zero, too. So a row of coordinates has the mean and the length
    of the row that it stands for, and both normalizations agree, up to a factor and to what lies
    outside the basis. With `size` equal to the size before, nothing does.

    size: at least 2.
    counts: (n_pieces,), how often each piece occurs in text; `None` counts all alike.
    """
    n_before = embeddings.pieces.shape[1]
    pieces, positions, types = (
        table.double() - table.double().mean(dim=1, keepdim=True) for table in embeddings[:3]
    )
    # A piece that the text does not have counts, too, since other texts may have it.
    shares = torch.ones(len(pieces)) if counts is None else torch.from_numpy(counts).double() + 1
    shares = (shares / shares.sum()).to(pieces)
    mean = shares @ pieces + positions.mean(dim=0) + types[0]
    # Of the sum of a piece and a position, drawn independently.
    same = torch.full_like(positions[:, 0], 1 / len(positions))
    squares = _covariance(pieces, shares) + _covariance(positions, same) + torch.outer(mean, mean)
    directions = torch.linalg.eigh(squares).eigenvectors[:, 1 - size :]
    basis = directions @ _cosines(size).to(directions)
    # The variance is a mean over fewer numbers. With this factor it is the same, so that the
    # epsilon of the normalization counts the same, too.
    factor = math.sqrt(size / n_before)
    projection = embeddings.projection.double()
    smaller = Embeddings(
        factor * pieces @ basis,
        factor * positions @ basis,
        factor * types @ basis,
        torch.ones(size),
        torch.zeros(size),
        projection * embeddings.norm_weight.double() @ basis / factor,
        projection @ embeddings.norm_bias.double() + embeddings.bias.double(),
    )
    return Embeddings(*(part.to(embeddings.pieces.dtype) for part in smaller))


def _covariance(rows: Tensor, shares: Tensor) -> Tensor:
    """Compute the covariance of rows, (size, size). shares: (n,), their probabilities."""
    centred = rows - shares @ rows
    return (centred * shares[:, None]).T @ centred


def _cosines(size: int) -> Tensor:
    """Make orthonormal rows that are orthogonal to a row of ones: (size - 1, size) float64.

    They are the waves of a cosine transform without the constant one. They spread each direction
    over all coordinates, which is good for int8 with one scale per row.
    """
    frequency = torch.arange(1, size, dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64) + 0.5
    return math.sqrt(2 / size) * torch.cos(math.pi / size * frequency * place)


def _embedding_weights(embeddings: Embeddings) -> dict[str, Tensor]:
    names = (
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
        f"{ALBERT.projection}.weight",
        f"{ALBERT.projection}.bias",
    )
    return dict(zip(names, embeddings, strict=True))


def _layer_weights(encoder: PreTrainedModel, n_groups: int) -> dict[str, Tensor]:
    """Copy the weights of the lowest `n_groups` layers."""
    family = FAMILIES[encoder.config.model_type]
    weights: dict[str, Tensor] = {}
    for group in range(n_groups):
        for part, name in vars(family.layer).items():
            module = encoder.get_submodule(f"{family.layers}.{group}.{name}")
            path = f"{ALBERT.layers}.{group}.albert_layers.0.{getattr(ALBERT.layer, part)}"
            weights |= {f"{path}.{key}": value for key, value in module.state_dict().items()}
    return weights
