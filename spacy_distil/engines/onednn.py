"""Multiply float32 matrices with oneDNN on CPUs for which torch chooses a slower library."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from spacy_distil.cpu import cpu_model


class OneDnnLinear(torch.nn.Linear):
    """A linear layer that multiplies with oneDNN, forward and backward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)  # torch uses oneDNN for half precision anyway
        return _Linear.apply(input, self.weight, self.bias)


def is_faster(device: torch.device) -> bool:
    """Check whether oneDNN is faster than MKL, which torch uses for float32. MKL uses AVX-512 on
    Intel CPUs only, oneDNN on AMD CPUs as well.
    """
    return (
        device.type == "cpu"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AMD" in cpu_model()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def use_onednn(model: torch.nn.Module) -> None:
    """Make all linear layers of a model use oneDNN. They keep their weights and names."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = OneDnnLinear


class _Linear(torch.autograd.Function):
    """y = x @ weight.T + bias. x: (..., n_in); weight: (n_out, n_in); y: (..., n_out)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_rows = d_y.reshape(-1, d_y.shape[-1])
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _multiply(d_y, weight.t()) if needs_x else None,
            _multiply(d_rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs_weight else None,
            d_rows.sum(0) if needs_bias else None,
        )


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    if torch.compiler.is_compiling():
        return _opaque(x, weight, bias)
    return _linear_pointwise(x, weight, bias)


def _linear_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Call the operator that torch's compiler uses for a linear layer with constant weights."""
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


# The same operator, opaque to the compiler, which would insist on constant weights.
_opaque = torch.library.custom_op(
    "spacy_distil::linear",
    _linear_pointwise,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)


@_opaque.register_fake
def _shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
