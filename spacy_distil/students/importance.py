"""Measure how much a teacher's loss depends on each of its units: heads, neurons and dimensions.

Michel et al. (2019, "Are sixteen heads really better than one?", arXiv 1905.10650) multiply the
output of each attention head by a mask of 1. A head's importance is the slope of the loss with
respect to its mask: the absolute value, averaged over texts. To first order, the loss would change
by as much if the head were left out (Molchanov et al., 2017, arXiv 1611.06440). Neurons and
dimensions are measured in the same way, in the same backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spacy_distil.errors import ConfigError, CorpusError, WeightsError
from spacy_distil.students.families import CUTTABLE
from spacy_distil.students.masked_lm_heads import MaskedLMHead, embedding_projection, masked_lm_head
from spacy_distil.students.masking import MaskedBatch, Masking, batch_blocks
from spacy_distil.students.shapes import shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spacy_distil.students.teachers import Teacher

LossKind = Literal["masked LM", "cosine"]
# Share of the pieces that are masked, as in BERT.
_MASKED_SHARE = 0.15
# Blocks are cut to this many pieces. More would take longer and give the same ranking.
_MAX_PIECES = 128


@dataclass(frozen=True)
class Importance:
    """The importance of all units of a teacher: CPU, float64, at least 0.

    The squares sum to 1 along the last axis, because gradients differ in size between layers.
    Compare numbers only within a layer.

    heads: (n_layers, n_heads).
    neurons: (n_layers, n_neurons).
    dims: (width,), of the hidden states in all layers at once.
    loss_kind: see `measure_importance`.
    blocks: number of blocks that it was measured on.
    """

    heads: Tensor
    neurons: Tensor
    dims: Tensor
    loss_kind: LossKind
    blocks: int


def measure_importance(teacher: Teacher, batches: Iterable[MaskedBatch]) -> Importance:
    """Measure the importance of a teacher's units on text.

    The loss is the masked-LM loss if the teacher has a masked-LM head. Otherwise it is 1 - cosine
    between the last hidden states of the masked and the clean text, at all pieces; units are then
    important if they make up for missing pieces.

    batches: with masked pieces, on the teacher's device.
    Raises ConfigError for a family that cannot be cut, CorpusError if there are no batches,
    WeightsError if gradients are not finite.
    """
    model = teacher.model
    config = model.config
    if config.model_type not in CUTTABLE:
        raise ConfigError(
            f"a teacher of type {config.model_type!r} cannot be cut, so its importance is not "
            f"measured. These types can be: {', '.join(CUTTABLE)}"
        )
    mlm_head = masked_lm_head(model) if teacher.has_mlm_head else None
    shape = shape_of(config)
    totals = (
        torch.zeros(shape.layers, shape.heads, dtype=torch.float64),
        torch.zeros(shape.layers, shape.ffn, dtype=torch.float64),
        torch.zeros(shape.width, dtype=torch.float64),
    )
    n_blocks = 0
    for batch in batches:
        for total, gradient in zip(totals, _mask_gradients(model, mlm_head, batch), strict=True):
            # One gradient per block, so that gradients of different blocks do not cancel out.
            total += gradient.abs().sum(dim=0, dtype=torch.float64).cpu()
        n_blocks += len(batch.inputs)
    if n_blocks == 0:
        raise CorpusError("importance is measured on text, and there is none")
    if not all(total.isfinite().all() for total in totals):
        raise WeightsError(
            f"{teacher.name}: the importance of its parts is not finite, so none can be chosen by "
            f"it. Look for weights that are nan or inf, or take another teacher"
        )
    heads, neurons, dims = (F.normalize(total, dim=-1) for total in totals)
    kind: LossKind = "cosine" if mlm_head is None else "masked LM"
    return Importance(heads, neurons, dims, kind, n_blocks)


def importance_batches(
    blocks: Sequence[np.ndarray], teacher: Teacher, *, batch_pieces: int = 2048, seed: int = 0
) -> Iterator[MaskedBatch]:
    """Make batches to measure importance on, with 15 % of their pieces masked.

    blocks: piece ids, (n_pieces,) each. About 64 blocks are enough to rank heads. Only the first
        128 pieces of a block are read.
    batch_pieces: most pieces in one forward pass. It bounds the memory of the gradients.
    YIELDS: batches on the teacher's device.
    """
    tokenizer, device = teacher.tokenizer, teacher.model.device
    # A block ends with a separator.
    blocks = [
        np.append(block[: _MAX_PIECES - 1], block[-1]) if len(block) > _MAX_PIECES else block
        for block in blocks
    ]
    masking = Masking.for_tokenizer(tokenizer, _MASKED_SHARE, seed=seed)
    masking_on_device = masking.to(device)
    batch_size = max(1, batch_pieces // max(map(len, blocks), default=1))
    for start in range(0, len(blocks), batch_size):
        chunk = blocks[start : start + batch_size]
        numbers = range(start, start + len(chunk))
        batch = batch_blocks(chunk, numbers, pad_id=int(tokenizer.pad_token_id), masking=masking)
        yield masking_on_device(batch.to(device), "importance")


@dataclass(frozen=True)
class UnitMasks:
    """Factors of an encoder's units, separate for each block of a batch.

    heads: (n_blocks, n_layers, n_heads), of the outputs of attention heads.
    neurons: (n_blocks, n_layers, n_neurons), of the outputs of neurons.
    dims: (n_blocks, width), of the hidden states that enter the lowest layer, and of the outputs
        of each layer normalization in the layers.
    """

    heads: Tensor
    neurons: Tensor
    dims: Tensor


@contextmanager
def mask_units(model: PreTrainedModel, masks: UnitMasks) -> Iterator[None]:
    """Multiply the units of an encoder by masks while the context lasts.

    model: of a family that can be cut, with or without a masked-LM head.
    """
    encoder = model.base_model
    family = CUTTABLE[encoder.config.model_type]
    parts = family.layer
    # The module whose output enters the lowest layer.
    projection = embedding_projection(encoder)
    bottom = encoder.embeddings if projection is None else projection
    handles = [bottom.register_forward_hook(_scale_output(masks.dims))]
    size = shape_of(encoder.config).head_size
    for number, layer in enumerate(encoder.get_submodule(family.layers)):
        input_masks = {
            parts.attention_out: masks.heads[:, number].repeat_interleave(size, dim=-1),
            parts.down: masks.neurons[:, number],
        }
        for name, mask in input_masks.items():
            module = layer.get_submodule(name)
            handles.append(module.register_forward_pre_hook(_scale_input(mask)))
        for name in parts.norms.values():
            module = layer.get_submodule(name)
            handles.append(module.register_forward_hook(_scale_output(masks.dims)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scale_input(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """Make a hook that scales inputs of (n_blocks, length, n). mask: (n_blocks, n)."""
    return lambda module, inputs: (inputs[0] * mask[:, None],)


def _scale_output(mask: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Make a hook that scales outputs of (n_blocks, length, n). mask: (n_blocks, n)."""
    return lambda module, inputs, output: output * mask[:, None]


def _mask_gradients(
    model: PreTrainedModel, mlm_head: MaskedLMHead | None, batch: MaskedBatch
) -> tuple[Tensor, ...]:
    """Compute the gradient of each block's loss with respect to the block's masks.

    RETURNS: gradients in the order and shapes of `UnitMasks`.
    """
    shape, n_blocks = shape_of(model.config), len(batch.inputs)

    def ones(*size: int) -> Tensor:
        return torch.ones(size, device=model.device, dtype=model.dtype, requires_grad=True)

    masks = (
        ones(n_blocks, shape.layers, shape.heads),
        ones(n_blocks, shape.layers, shape.ffn),
        ones(n_blocks, shape.width),
    )
    with torch.enable_grad():
        with mask_units(model, UnitMasks(*masks)):
            hidden = _encode(model, batch)
        losses = block_losses(model, mlm_head, batch, hidden)
        return torch.autograd.grad(losses.sum(), masks)


def block_losses(
    model: PreTrainedModel, mlm_head: MaskedLMHead | None, batch: MaskedBatch, hidden: Tensor
) -> Tensor:
    """Compute the loss of each block, the mean over its positions: (n_blocks,).

    mlm_head: the model's masked-LM head. It decides which loss: see `measure_importance`.
    hidden: last hidden states of the masked text, (n_blocks, length, width).
    """
    n_blocks, length, _ = hidden.shape
    if mlm_head is not None:
        features = mlm_head.transform(hidden.flatten(0, 1).index_select(0, batch.masked))
        losses = F.cross_entropy(mlm_head.decode(features), batch.labels, reduction="none")
        positions = batch.masked
    else:
        with torch.no_grad():
            clean = batch.inputs.flatten().index_copy(0, batch.masked, batch.labels)
            target = _encode(model, replace(batch, inputs=clean.view_as(batch.inputs)))
        losses = 1 - F.cosine_similarity(hidden, target, dim=-1).flatten()
        positions = torch.arange(len(losses), device=losses.device)
        if batch.real is not None:
            positions = batch.real
            losses = losses.index_select(0, positions)
    block = positions // length
    sums = losses.new_zeros(n_blocks).index_add(0, block, losses)
    return sums / torch.bincount(block, minlength=n_blocks).clamp(min=1)


def _encode(model: PreTrainedModel, batch: MaskedBatch) -> Tensor:
    """Compute the last hidden states, (n_blocks, length, width)."""
    result = model.base_model(
        input_ids=batch.inputs, attention_mask=batch.attention, return_dict=True
    )
    hidden: Tensor = result.last_hidden_state
    return hidden
