"""Kullback-Leibler divergence of distributions that are given as logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def kl_divergence(target: Tensor, prediction: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Sum KL(softmax(target) || softmax(prediction)) over rows.

    target: (..., n) logits, without gradients.
    prediction: (..., n) logits. Gradients flow into them.
    ignored: bool, broadcast to (..., n), true for entries to leave out of both distributions. A row
        without any other entries counts 0.
    RETURNS: scalar, at least in float32.
    """
    divergence: Tensor = _KLDivergence.apply(target, prediction, ignored)
    return divergence


class _KLDivergence(torch.autograd.Function):
    """The gradient of `prediction` is softmax(prediction) - softmax(target).

    The forward pass computes it from the tensors of the loss. They are large, and reading and
    writing them takes most of the time.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, prediction: Tensor, ignored: Tensor | None) -> Tensor:
        log_p, log_q = _log_softmax(target, ignored), _log_softmax(prediction, ignored)
        p = log_p.exp()
        divergence = log_p.sub_(log_q).mul_(p).sum()
        if ctx.needs_input_grad[1]:
            gradient = torch.empty_like(prediction, memory_format=torch.contiguous_format)
            ctx.save_for_backward(torch.sub(log_q.exp_(), p, out=gradient))
        return divergence

    @staticmethod
    def backward(ctx: Any, *d_divergence: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * d_divergence[0].to(gradient.dtype), None


def _log_softmax(logits: Tensor, ignored: Tensor | None) -> Tensor:
    if ignored is not None:
        # A finite number, since the difference of two infinite ones is NaN. If all entries of a row
        # are ignored, both distributions are uniform, and the divergence is 0.
        logits = logits.masked_fill(ignored, torch.finfo(logits.dtype).min)
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
