"""Sums over the rows of tensors, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Lower precisions as float32; others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def chunked_sum(
    loss: Callable[..., Tensor],
    sliced: Sequence[Tensor],
    *,
    whole: Sequence[Tensor] = (),
    constant: Sequence[Tensor] = (),
    size: int,
) -> Tensor:
    """A loss that is a sum over rows, in memory for `size` rows at a time.

    Each chunk's gradient is computed right after its loss, while all that it takes is at hand:
    nothing that `loss` makes of a chunk outlives it, forward or backward, and nothing is computed
    twice.

    loss: called with the rows of a chunk of each of `sliced`, then with all of each of `whole`,
        then with the chunk's rows of each of `constant`; returns their summed loss, a scalar.
    sliced: tensors of equally many rows, along their first dimension; gradients flow into them.
    whole: further tensors that gradients flow into, such as a layer's weights.
    constant: tensors of as many rows as `sliced`; no gradients flow into them.
    """
    tensors = (*sliced, *whole)
    if not len(sliced[0]):  # zero, and still a node of the graph of all of them
        return torch.stack([at_least_float32(t).flatten()[:0].sum() for t in tensors]).sum()
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    total: Tensor = _ChunkedSum.apply(loss, size, wanted, len(sliced), tuple(constant), *tensors)
    return total


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[..., Tensor],
        size: int,
        wanted: Sequence[bool],
        n_sliced: int,
        constant: Sequence[Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        """wanted: whether a gradient is to be computed, by tensor."""
        total: Tensor | None = None
        # By tensor: of one that is sliced one from each chunk, of others the sum so far.
        gradients: list[list[Tensor]] = [[] for _ in tensors]
        # Once for all chunks, as autocast keeps a copy of each leaf that it sees.
        whole = _leaves(tensors[n_sliced:], wanted[n_sliced:])
        for start in range(0, len(tensors[0]), size):
            rows = slice(start, start + size)
            sliced = _leaves([t[rows] for t in tensors[:n_sliced]], wanted[:n_sliced])
            leaves = [*sliced, *whole]
            with torch.set_grad_enabled(any(wanted)):
                value = loss(*leaves, *(t[rows] for t in constant))
            total = value.detach() if total is None else total + value.detach()
            places = [place for place, want in enumerate(wanted) if want]
            found = torch.autograd.grad(value, [leaves[p] for p in places]) if places else ()
            for place, gradient in zip(places, found, strict=True):
                if place < n_sliced or not gradients[place]:
                    gradients[place].append(gradient)
                else:
                    gradients[place][0] = gradients[place][0] + gradient
        ctx.save_for_backward(
            *(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in gradients if parts)
        )
        ctx.wanted = wanted
        assert total is not None
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        d_tensors = (next(saved) * d_total[0] if want else None for want in ctx.wanted)
        return (None, None, None, None, None, *d_tensors)


def _leaves(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """The same, each at the start of a graph of its own where a gradient is wanted."""
    return [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
