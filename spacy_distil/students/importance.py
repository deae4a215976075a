"""How much a teacher's loss depends on each of its heads, feed-forward neurons and dimensions.

Michel et al. (2019, "Are sixteen heads really better than one?", arXiv 1905.10650) multiply each
head's output by a mask of 1 and take as its importance how steeply the loss changes with the mask,
whatever the sign, averaged over texts. To first order that is what the loss would change by if the
head were left out (Molchanov et al., 2017, arXiv 1611.06440), and it is measured for neurons and
dimensions in the same way and in the same backward pass.
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
from spacy_distil.students.masked_lm_heads import MaskedLMHead, masked_lm_head
from spacy_distil.students.masking import MaskedBatch, Masking, batch_blocks
from spacy_distil.students.shapes import shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spacy_distil.students.teachers import Teacher

LossKind = Literal["masked LM", "cosine"]
# BERT's share of the pieces.
_MASKED = 0.15
# Pieces of a block that are read. More would take longer and rank alike.
_LONGEST = 128


@dataclass(frozen=True)
class Importance:
    """Importance in a whole teacher, all on the CPU, float64 and at least 0.

    Along the last axis the squares sum to 1, since gradients of different layers are of different
    sizes: numbers compare within a layer.

    heads: (layers, heads).
    neurons: (layers, neurons).
    dims: (width,), of the hidden states in all layers at once.
    loss_kind: see `measure_importance`.
    blocks: how many it was measured on.
    """

    heads: Tensor
    neurons: Tensor
    dims: Tensor
    loss_kind: LossKind
    blocks: int


def measure_importance(teacher: Teacher, batches: Iterable[MaskedBatch]) -> Importance:
    """Importance of a teacher's heads, neurons and dimensions on some text.

    The loss is that of masked-LM where the teacher has the head. Without one there are no labels:
    it is then 1 - cosine between the last hidden states of the masked and of the whole text, at
    all pieces, and what is important is what makes up for the pieces that are missing.

    batches: with masked pieces, on the teacher's device.
    """
    model = teacher.model
    config = model.config
    if config.model_type not in CUTTABLE:
        raise ConfigError(
            f"a teacher of type {config.model_type!r} cannot be cut, so that nothing is measured "
            f"in it. Those that can: {', '.join(CUTTABLE)}"
        )
    head = masked_lm_head(model) if teacher.has_head else None
    shape = shape_of(config)
    sums = (
        torch.zeros(shape.layers, shape.heads, dtype=torch.float64),
        torch.zeros(shape.layers, shape.ffn, dtype=torch.float64),
        torch.zeros(shape.width, dtype=torch.float64),
    )
    n_blocks = 0
    for batch in batches:
        for total, gradient in zip(sums, _gradients(model, head, batch), strict=True):
            # One gradient for each block: those of different blocks must not cancel out.
            total += gradient.abs().sum(dim=0, dtype=torch.float64).cpu()
        n_blocks += len(batch.inputs)
    if n_blocks == 0:
        raise CorpusError("importance is measured on text, and there is none")
    if not all(total.isfinite().all() for total in sums):
        raise WeightsError(
            f"{teacher.name}: the importance of its parts is not finite, so that none can be "
            f"chosen by it. Look for weights that are nan or inf, or take another teacher"
        )
    heads, neurons, dims = (F.normalize(total, dim=-1) for total in sums)
    kind: LossKind = "cosine" if head is None else "masked LM"
    return Importance(heads, neurons, dims, kind, n_blocks)


def importance_batches(
    blocks: Sequence[np.ndarray], teacher: Teacher, *, batch_pieces: int = 2048, seed: int = 0
) -> Iterator[MaskedBatch]:
    """Batches to measure importance on, 15 % of their pieces masked, on the teacher's device.

    blocks: ids of their pieces; about 64 are enough to rank heads. Of longer ones than 128 pieces
        the beginning is read.
    batch_pieces: in one forward pass, which bounds the memory that its gradients take.
    """
    tokenizer, device = teacher.tokenizer, teacher.model.device
    # The last piece is a separator.
    blocks = [
        np.append(block[: _LONGEST - 1], block[-1]) if len(block) > _LONGEST else block
        for block in blocks
    ]
    masking = Masking.for_tokenizer(tokenizer, _MASKED, seed=seed)
    on_device = masking.to(device)
    batch_size = max(1, batch_pieces // max(map(len, blocks), default=1))
    for start in range(0, len(blocks), batch_size):
        some = blocks[start : start + batch_size]
        places = range(start, start + len(some))
        rows = batch_blocks(some, places, pad_id=int(tokenizer.pad_token_id), masking=masking)
        yield on_device(rows.to(device), "importance")


@dataclass(frozen=True)
class Masks:
    """What parts of an encoder are multiplied by, for each block of a batch on its own.

    heads: (blocks, layers, heads), their outputs.
    neurons: (blocks, layers, neurons), their outputs.
    dims: (blocks, width), the hidden states that enter the lowest layer and those after each
        normalisation in the layers.
    """

    heads: Tensor
    neurons: Tensor
    dims: Tensor


@contextmanager
def masked(model: PreTrainedModel, masks: Masks) -> Iterator[None]:
    """Multiply parts of an encoder by masks while the context lasts.

    model: of a family that can be cut, with or without a head.
    """
    encoder = model.base_model
    family = CUTTABLE[encoder.config.model_type]
    bottom = getattr(encoder, "embeddings_project", encoder.embeddings)  # the former in ELECTRA
    handles = [bottom.register_forward_hook(_scale_output(masks.dims))]
    size = shape_of(encoder.config).head_size
    for number, layer in enumerate(encoder.get_submodule(family.layers)):
        by_input = {
            family.layer.attention_out: masks.heads[:, number].repeat_interleave(size, dim=-1),
            family.layer.down: masks.neurons[:, number],
        }
        for name, mask in by_input.items():
            part = layer.get_submodule(name)
            handles.append(part.register_forward_pre_hook(_scale_input(mask)))
        for name in (family.layer.attention_norm, family.layer.output_norm):
            part = layer.get_submodule(name)
            handles.append(part.register_forward_hook(_scale_output(masks.dims)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scale_input(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """mask: (blocks, n), for inputs of (blocks, length, n)."""
    return lambda module, inputs: (inputs[0] * mask[:, None],)


def _scale_output(mask: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """mask: (blocks, n), for outputs of (blocks, length, n)."""
    return lambda module, inputs, output: output * mask[:, None]


def _gradients(
    model: PreTrainedModel, head: MaskedLMHead | None, batch: MaskedBatch
) -> tuple[Tensor, ...]:
    """How the loss of each block changes with its masks, in the order and shapes of `Masks`."""
    shape, n_blocks = shape_of(model.config), len(batch.inputs)

    def ones(*size: int) -> Tensor:
        return torch.ones(size, device=model.device, dtype=model.dtype, requires_grad=True)

    leaves = (
        ones(n_blocks, shape.layers, shape.heads),
        ones(n_blocks, shape.layers, shape.ffn),
        ones(n_blocks, shape.width),
    )
    with torch.enable_grad():
        with masked(model, Masks(*leaves)):
            hidden = _encode(model, batch)
        losses = block_losses(model, head, batch, hidden)
        return torch.autograd.grad(losses.sum(), leaves)


def block_losses(
    model: PreTrainedModel, head: MaskedLMHead | None, batch: MaskedBatch, hidden: Tensor
) -> Tensor:
    """The loss of each block, (blocks,). It is a mean over positions.

    head: the model's, or `None`; it decides which loss, see `measure_importance`.
    hidden: last hidden states of the masked text, (blocks, length, width).
    """
    n_blocks, length, _ = hidden.shape
    if head is not None:
        features = head.transform(hidden.flatten(0, 1).index_select(0, batch.masked))
        losses = F.cross_entropy(head.decode(features), batch.labels, reduction="none")
        at = batch.masked
    else:
        with torch.no_grad():
            clean = batch.inputs.flatten().index_copy(0, batch.masked, batch.labels)
            target = _encode(model, replace(batch, inputs=clean.view_as(batch.inputs)))
        losses = 1 - F.cosine_similarity(hidden, target, dim=-1).flatten()
        at = torch.arange(len(losses), device=losses.device)
        if batch.real is not None:
            at = batch.real
            losses = losses.index_select(0, at)
    block = at // length
    sums = losses.new_zeros(n_blocks).index_add(0, block, losses)
    return sums / torch.bincount(block, minlength=n_blocks).clamp(min=1)


def _encode(model: PreTrainedModel, batch: MaskedBatch) -> Tensor:
    """The last hidden states, (blocks, length, width)."""
    result = model.base_model(
        input_ids=batch.inputs, attention_mask=batch.attention, return_dict=True
    )
    hidden: Tensor = result.last_hidden_state
    return hidden
