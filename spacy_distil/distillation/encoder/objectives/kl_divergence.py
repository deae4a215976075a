"""Kullback-Leibler divergence of distributions that are given by their logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def kl_divergence(taught: Tensor, learnt: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Sum over rows of KL(softmax(taught) || softmax(learnt)), a scalar, at least in float32.

    taught: (..., n), without gradients.
    learnt: (..., n); gradients flow into it.
    ignored: bool, broadcast to (..., n): what is in neither distribution. A row of which all is
        ignored counts nothing.
    """
    divergence: Tensor = _KLDivergence.apply(taught, learnt, ignored)
    return divergence


class _KLDivergence(torch.autograd.Function):
    """The gradient by `learnt` is softmax(learnt) - softmax(taught). It is made of what the loss
    has at hand: these tensors are large, and time goes into reading and writing them.
    """

    @staticmethod
    def forward(ctx: Any, taught: Tensor, learnt: Tensor, ignored: Tensor | None) -> Tensor:
        log_p, log_q = _log_softmax(taught, ignored), _log_softmax(learnt, ignored)
        p = log_p.exp()
        divergence = log_p.sub_(log_q).mul_(p).sum()
        if ctx.needs_input_grad[1]:
            gradient = torch.empty_like(learnt, memory_format=torch.contiguous_format)
            ctx.save_for_backward(torch.sub(log_q.exp_(), p, out=gradient))
        return divergence

    @staticmethod
    def backward(ctx: Any, *d_divergence: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * d_divergence[0].to(gradient.dtype), None


def _log_softmax(logits: Tensor, ignored: Tensor | None) -> Tensor:
    if ignored is not None:
        # A finite number: differences of two infinite ones would be no numbers. Where all of a row
        # is ignored, both distributions are uniform, and nothing differs.
        logits = logits.masked_fill(ignored, torch.finfo(logits.dtype).min)
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
