"""Build an encoder as an ONNX graph from its weights, without torch and without tracing.

Here are nodes, constants and products with weights, which all families share. `families` holds the
computation of each family.

Every product with weights can be computed in int8. Weights are rounded once, with a scale for each
column (output). Activations are rounded at run time, with a scale for each ROW, that is for each
piece (ZeroQuant's token-wise quantization, Yao et al. 2022, arXiv 2206.01861, section 4.1). So the
vectors of a doc do not depend on the other docs of its batch, and no calibration is needed. ONNX
Runtime's own dynamic quantization has one scale for the whole batch.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spacy_distil.engines.fused import RECIPE
from spacy_distil.engines.onnx import IDS, MASK, POSITIONS, ROWS, SECONDS
from spacy_distil.errors import ConfigError
from spacy_distil.export.weights import Linear, Norm

# Domain of the operators that only ONNX Runtime has.
CONTRIB = "com.microsoft"
# Versions that the oldest supported ONNX Runtime reads.
OPSET, IR_VERSION = 18, 9
# Activations of feed-forward layers that have an operator.
ACTIVATIONS = ("gelu", "gelu_new", "relu")
# Lower bound of both forms of GELU.
GELU_MINIMUM = -0.17005
# The largest numbers that activations are rounded to: on both sides of 0, or above a minimum.
SYMMETRIC_STEPS, SHIFTED_STEPS = 127.0, 255.0
# Smallest scale of a column, so that a column of zeros stays zero.
_TINY = np.float32(1e-12)
# Pieces or columns that are rounded at once: a whole large vocabulary would take several times its
# memory.
_AT_ONCE = 8192
# Shares of a row's largest number that the largest of 4 bits may stand for.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)


@dataclass(frozen=True)
class Precision:
    """Which parts are computed in int8. All others are in float32.

    layers: indices of layers.
    embeddings: whether the piece embeddings are kept in int8, with a scale for each piece.
    embedding_bits: 8, or 4 to keep them in half of the space.
    reduced_range: whether weights use only 7 of the 8 bits. Sums of two products then fit into 16
        bits, where CPUs without VNNI instructions (AVX2) saturate.
    """

    layers: frozenset[int] = frozenset()
    embeddings: bool = False
    embedding_bits: Literal[8, 4] = 8
    reduced_range: bool = False


def check_activation(activation: str) -> None:
    """Raise ConfigError for an activation that has no operator."""
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"An encoder with the activation {activation!r} cannot be turned into an ONNX graph: "
            f"expected one of {', '.join(ACTIVATIONS)}."
        )


def quantize_columns(weight: np.ndarray, *, reduced_range: bool) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to int8, symmetrically, with a scale for each column.

    weight: (n_in, n_out) float32.
    RETURNS: rounded weight, (n_in, n_out) int8, and scales, (n_out,) float32. Their product
        approximates `weight`.
    """
    limit = 63 if reduced_range else 127
    rounded, scales = np.empty_like(weight, np.int8), np.empty(weight.shape[1], "f")
    for start in range(0, weight.shape[1], _AT_ONCE):
        own = slice(start, start + _AT_ONCE)
        part = weight[:, own]
        scales[own] = np.maximum(np.abs(part).max(axis=0) / limit, _TINY)
        rounded[:, own] = np.round(part / scales[own])
    return rounded, scales


def quantize_to_4_bits(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round rows to 4 bits, symmetrically, with a scale for each row.

    Large numbers may be clipped: of a few scales, the one with the smallest squared error is taken.

    pieces: (n, width) float32, of even width.
    RETURNS: rounded pieces, (n, width / 2) uint8, and scales, (n, 1) float32. The lower half of a
        byte is a number of the left half of a row plus 8, its upper half one of the right half.
    """
    if pieces.shape[1] % 2:
        raise ConfigError(
            f"Embeddings of width {pieces.shape[1]} cannot be kept in 4 bits: expected an even "
            "width. Keep them in 8."
        )
    parts = [
        _round_to_4_bits(pieces[start : start + _AT_ONCE])
        for start in range(0, len(pieces), _AT_ONCE)
    ]
    numbers, scales = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return numbers, scales


def _round_to_4_bits(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.maximum(np.abs(pieces).max(axis=1, keepdims=True), _TINY)
    scales, errors = largest / 7, np.full((len(pieces), 1), np.inf, "f")
    for share in _SHARES:
        tried = (share * largest / 7).astype("f")
        rounded = np.clip(np.round(pieces / tried), -7, 7) * tried
        error = np.square(rounded - pieces).sum(axis=1, keepdims=True)
        scales, errors = np.where(error < errors, tried, scales), np.minimum(error, errors)
    numbers = (np.clip(np.round(pieces / scales), -7, 7) + 8).astype(np.uint8)
    left, right = np.split(numbers, 2, axis=1)
    return left | right << 4, scales.astype("f")


@dataclass(frozen=True)
class Rounded:
    """Rows rounded to uint8. They approximate (values - zero_point) * largest / steps.

    values, largest: names in the graph of (..., n_in) uint8 and (..., 1) float32.
    """

    values: str
    largest: str
    zero_point: int
    steps: float


class HasWidth(Protocol):
    """Weights of an encoder of any family."""

    @property
    def width(self) -> int:
        """Width of the hidden states."""


class GraphBuilder(ABC):
    """Builds the graph that `spacy_distil.engines.onnx.OnnxEngine` runs.

    Inputs: ids and mask, (n_windows, length) int64, with windows padded on the right; positions,
    (n_rows,) int64. Output: rows, (n_rows, width) float32: the last hidden states at `positions` of
    the flattened (n_windows * length) grid. With `has_seconds` there is one more input: seconds,
    (n_windows,) int64, the place at which the second text of a window begins.

    Methods that add parts take and return names of values in the graph.
    """

    has_seconds = False

    def __init__(self, weights: HasWidth, precision: Precision) -> None:
        self.weights = weights
        self.precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.constant_names: dict[tuple[Any, ...], str] = {}  # by dtype, shape and digest
        self._pieces: list[str] | None = None

    @abstractmethod
    def encode(self) -> str:
        """Add the encoder. RETURNS: the last hidden states, (n_windows, length, width)."""

    def build(self) -> bytes:
        """Build and serialize the graph."""
        width = self.weights.width
        flat = self.op("Reshape", self.encode(), self.constant(np.array([-1, width])))
        self.nodes.append(helper.make_node("Gather", [flat, POSITIONS], [ROWS]))
        grid = ["n_windows", "length"]
        inputs = {IDS: grid, MASK: grid, POSITIONS: ["n_rows"]}
        if self.has_seconds:
            inputs[SECONDS] = ["n_windows"]
        graph = helper.make_graph(
            self.nodes,
            "encoder",
            inputs=[
                helper.make_tensor_value_info(name, TensorProto.INT64, shape)
                for name, shape in inputs.items()
            ],
            outputs=[
                helper.make_tensor_value_info(
                    ROWS, TensorProto.FLOAT, ["n_rows", self.weights.width]
                )
            ],
            initializer=self.constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)],
            ir_version=IR_VERSION,
            producer_name="spacy-distil",
        )
        recipe = self.recipe()
        if recipe is not None:
            helper.set_model_props(model, {RECIPE: json.dumps(recipe)})
        return model.SerializeToString()

    def recipe(self) -> dict[str, Any] | None:
        """Name the weights, for `spacy_distil.engines.fused`. `None` if it cannot run them."""
        return None

    # Parts that encoders share

    def lengths(self) -> str:
        """Count the pieces of each window, without padding: (n_windows,) int32."""
        lengths = self.op("ReduceSum", MASK, self.constant(np.array([1])), keepdims=0)
        return self.op("Cast", lengths, to=TensorProto.INT32)

    def embed_pieces(self, pieces: np.ndarray) -> str:
        """Look up embeddings.

        pieces: (n_vocab, n_embedding) float32.
        RETURNS: (n_windows, length, n_embedding) float32.
        """
        if not self.precision.embeddings:
            return self.op("Gather", self.constant(pieces), IDS)
        rounded, scales = self.rounded_pieces(pieces)
        hidden = self.op("Gather", rounded, IDS)
        if self.precision.embedding_bits == 4:
            left = self.op("BitwiseAnd", hidden, self.scalar(15, np.uint8))
            right = self.op("BitShift", hidden, self.scalar(4, np.uint8), direction="RIGHT")
            hidden = self.op("Concat", left, right, axis=-1)
            hidden = self.op("Cast", hidden, to=TensorProto.FLOAT)
            hidden = self.op("Sub", hidden, self.scalar(8.0))
        else:
            hidden = self.op("Cast", hidden, to=TensorProto.FLOAT)
        return self.op("Mul", hidden, self.op("Gather", scales, IDS))

    def rounded_pieces(self, pieces: np.ndarray) -> list[str]:
        """Round embeddings.

        RETURNS: names of (n_vocab, n_embedding) int8, or of the bytes that `quantize_to_4_bits`
            makes, and of their scales, (n_vocab, 1).
        """
        if self._pieces is None:  # the nodes and the recipe name the same
            if self.precision.embedding_bits == 4:
                rounded, scales = quantize_to_4_bits(pieces)
            else:
                columns, by_column = quantize_columns(pieces.T, reduced_range=False)
                rounded, scales = columns.T, by_column[:, None]
            self._pieces = [self.constant(rounded), self.constant(scales)]
        return self._pieces

    def activate(self, inner: str, bias: np.ndarray, activation: str) -> str:
        """Add activation(inner + bias). activation: one of ACTIVATIONS."""
        if activation == "relu":
            return self.op("Relu", self.add_bias(inner, bias))
        operator = "BiasGelu" if activation == "gelu" else "FastGelu"
        return self.op(operator, inner, self.constant(bias), domain=CONTRIB)

    def norm(self, hidden: str, norm: Norm, epsilon: float) -> str:
        return self.op(
            "LayerNormalization",
            hidden,
            self.constant(norm.weight),
            self.constant(norm.bias),
            epsilon=epsilon,
        )

    def add_bias(self, value: str, bias: np.ndarray) -> str:
        return self.op("Add", value, self.constant(bias))

    # Products with weights

    def product(self, value: str, linear: Linear, rounded: Rounded | None = None) -> str:
        """Add value @ weight, without the bias.

        rounded: the value in int8. If it is given, the product is computed in int8.
        """
        if rounded is None:
            return self.op("MatMul", value, self.constant(linear.weight))
        weight, scales = self.int8_weight(linear, rounded.steps)
        result = self.op(
            "MatMulIntegerToFloat",
            rounded.values,
            weight,
            self.scalar(1.0),
            scales,
            self.scalar(rounded.zero_point, np.uint8),
            domain=CONTRIB,
        )
        return self.op("Mul", result, rounded.largest)

    def int8_weight(self, linear: Linear, steps: float) -> list[str]:
        """Round a weight to int8.

        steps: the largest number that activations are rounded to.
        RETURNS: the weight, (n_in, n_out) int8, and the scales of its columns, over `steps`.
        """
        weight, scales = self.quantize(linear.weight)
        return [self.constant(weight), self.constant(scales / steps)]

    def round_rows(self, value: str, *, minimum: float | None = None) -> Rounded:
        """Round each row to uint8, with a scale by its own largest number.

        minimum: lower bound of the numbers. It is subtracted first, so that all 8 bits serve the
            numbers above it. `None`: the range is symmetric.
        """
        if minimum is None:
            zero_point, steps, largest = 128, SYMMETRIC_STEPS, self.op("Abs", value)
        else:
            if minimum:
                value = self.op("Sub", value, self.scalar(minimum))
            zero_point, steps, largest = 0, SHIFTED_STEPS, value
        largest = self.op("ReduceMax", largest, self.constant(np.array([-1])), keepdims=1)
        # A row of zeros is multiplied by infinity here, and by zero after the product.
        values = self.op("Mul", value, self.op("Div", self.scalar(steps), largest))
        values = self.op(
            "QuantizeLinear", values, self.scalar(1.0), self.scalar(zero_point, np.uint8)
        )
        return Rounded(values, largest, zero_point, steps)

    def quantize(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round a matrix as `precision` says: see `quantize_columns`."""
        return quantize_columns(weight, reduced_range=self.precision.reduced_range)

    def rounded_weight(self, weight: np.ndarray) -> np.ndarray:
        """Compute the matrix that an int8 product multiplies by, (n_in, n_out) float64."""
        rounded, scales = self.quantize(weight)
        return rounded.astype(np.float64) * scales

    # Nodes and constants

    def op(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node. RETURNS: the name of its output."""
        name = f"{operator}_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, value: np.ndarray) -> str:
        """Add a constant, once even if shared layers repeat it. RETURNS: its name."""
        value = np.asarray(value, "f" if value.dtype == np.float64 else None, order="C")
        key = (value.dtype.str, value.shape, hashlib.sha1(value.reshape(-1).data).digest())
        if key not in self.constant_names:
            self.constant_names[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(value, self.constant_names[key]))
        return self.constant_names[key]

    def scalar(self, value: float, dtype: type = np.float32) -> str:
        return self.constant(np.array(value, dtype))
