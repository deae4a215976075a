"""Losses that are sums over the rows of tensors, computed in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a tensor of lower precision to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# Share of a GPU's memory that one tensor of a chunk takes. A loss has several at a time.
GPU_SHARE = 1 / 64


def chunk_size(device: torch.device, *, bytes_per_row: int, on_cpu: int) -> int:
    """Choose how many rows a chunk has.

    A GPU is fastest with large chunks, a CPU with chunks that its caches hold.

    bytes_per_row: of the largest tensor of a chunk.
    on_cpu: rows of a chunk if the device is not a GPU.
    """
    if device.type != "cuda":
        return on_cpu
    total = torch.cuda.get_device_properties(device).total_memory
    return max(1, int(GPU_SHARE * total) // bytes_per_row)


def chunked_sum(
    loss: Callable[..., Tensor],
    sliced: Sequence[Tensor],
    *,
    whole: Sequence[Tensor] = (),
    constant: Sequence[Tensor] = (),
    size: int,
) -> Tensor:
    """Compute a loss that is a sum over rows, with memory for `size` rows at a time.

    Each chunk's gradient is computed right after its loss, so that intermediate tensors of a chunk
    are freed before the next chunk, and none is computed twice.

    loss: called with the chunk's rows of each of `sliced`, then with each of `whole`, then with the
        chunk's rows of each of `constant`; returns the sum of the rows' losses, a scalar.
    sliced: tensors with the same number of rows, the first dimension. Gradients flow into them.
    whole: further tensors that gradients flow into, such as a layer's weights.
    constant: tensors with as many rows as `sliced`. No gradients flow into them.
    size: rows in a chunk.
    RETURNS: the sum, a scalar.
    """
    tensors = (*sliced, *whole)
    if not len(sliced[0]):  # zero, but connected to the graph of all tensors
        return torch.stack([at_least_float32(t).flatten()[:0].sum() for t in tensors]).sum()
    needs_grad = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    total: Tensor = _ChunkedSum.apply(
        loss, size, needs_grad, len(sliced), tuple(constant), *tensors
    )
    return total


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[..., Tensor],
        size: int,
        needs_grad: Sequence[bool],
        n_sliced: int,
        constant: Sequence[Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        """See `chunked_sum`. needs_grad: for each of `tensors`. n_sliced: how many are sliced."""
        total: Tensor | None = None
        # By tensor: one gradient for each chunk if it is sliced, otherwise their sum so far.
        gradients: list[list[Tensor]] = [[] for _ in tensors]
        # Made once for all chunks, since autocast keeps a copy of each leaf that it sees.
        whole = _leaves(tensors[n_sliced:], needs_grad[n_sliced:])
        for start in range(0, len(tensors[0]), size):
            rows = slice(start, start + size)
            sliced = _leaves([t[rows] for t in tensors[:n_sliced]], needs_grad[:n_sliced])
            leaves = [*sliced, *whole]
            with torch.set_grad_enabled(any(needs_grad)):
                value = loss(*leaves, *(t[rows] for t in constant))
            total = value.detach() if total is None else total + value.detach()
            learning = [i for i, needed in enumerate(needs_grad) if needed]
            computed = torch.autograd.grad(value, [leaves[i] for i in learning]) if learning else ()
            for i, gradient in zip(learning, computed, strict=True):
                if i < n_sliced or not gradients[i]:
                    gradients[i].append(gradient)
                else:
                    gradients[i][0] = gradients[i][0] + gradient
        ctx.save_for_backward(
            *(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in gradients if parts)
        )
        ctx.needs_grad = needs_grad
        assert total is not None
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        d_tensors = (next(saved) * d_total[0] if needed else None for needed in ctx.needs_grad)
        return (None, None, None, None, None, *d_tensors)


def _leaves(tensors: Sequence[Tensor], needs_grad: Sequence[bool]) -> list[Tensor]:
    """Detach tensors from their graphs, so that each one starts a graph of its own."""
    return [t.detach().requires_grad_(n) for t, n in zip(tensors, needs_grad, strict=True)]
