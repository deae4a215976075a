"""An int8 encoder that runs without a graph: `encoder.cpp` has the computation."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spacy_distil.encoding import RaggedBatch
from spacy_distil.engines.fused import library
from spacy_distil.engines.onnx_file import read_metadata, read_tensors
from spacy_distil.errors import WeightsError
from spacy_distil.runs.digests import Content

# The key under which a graph names its weights: see `Recipe` of `spacy_distil.export`.
RECIPE = "spacy_distil.fused"
# Activations of feed-forward layers, by their number in `encoder.cpp`.
ACTIVATIONS = ("gelu", "gelu_new", "relu")
# Sizes are multiples of these: columns of a product, and floats in a register.
GROUP, REGISTER = 64, 16
# The size of a head that attends in bfloat16, and of an embedding, is a multiple of this.
PAIRS = 32
# Activations that may be negative are rounded to numbers around this one.
ZERO_POINT = 128


class FusedEncoder:
    """Runs the encoder of a graph. Any number of threads may call it at once.

    A window's hidden states depend on that window alone, to the last bit.
    """

    def __init__(
        self, recipe: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, bfloat16: bool
    ) -> None:
        """recipe, tensors: see `from_graph`.

        bfloat16: whether attention multiplies numbers of bfloat16, for which this CPU must have
            instructions.
        """
        self._tensors = tensors
        self._kept: list[np.ndarray] = []  # the compiled part has only their addresses
        self._local = threading.local()
        self._pools: dict[int, ThreadPoolExecutor] = {}  # by process, since a fork has no threads
        layers = self._layers_of(recipe["layers"])
        self._layers = (library.Layer * len(layers))(*layers)
        pieces, scales = (tensors[name] for name in recipe["pieces"])
        positions, second_type = tensors[recipe["positions"]], recipe.get("second_type")
        self.n_pieces, (self.n_positions, embedding_width) = len(pieces), positions.shape
        self.width, n_neurons = tensors[recipe["layers"][0]["up"][0]].shape
        self._encoder = library.Encoder(
            width=self.width,
            embedding_width=embedding_width,
            n_neurons=n_neurons,
            n_heads=recipe["n_heads"],
            n_layers=len(layers),
            activation=ACTIVATIONS.index(recipe["activation"]),
            bfloat16=bfloat16,
            embedding_bits=recipe["embedding_bits"],
            epsilon=recipe["epsilon"],
            pieces=pieces.ctypes.data,  # not copied: by far the largest, and read by rows
            piece_scales=self._keep(scales, np.float32),
            positions=(first := self._keep(positions, np.float32)),
            second_positions=first
            if second_type is None
            else self._keep(positions + tensors[second_type], np.float32),
            embedding_norm=self._norm(recipe["embedding_norm"]),
            **self._projection(recipe.get("projection")),
            layers=self._layers,
        )

    @classmethod
    def from_graph(cls, graph: Content, source: str) -> FusedEncoder | None:
        """Read an encoder from a graph.

        source: name of the graph's file, for errors.
        RETURNS: `None` if the graph names no weights, this machine cannot run them, or their sizes
            are none that the compiled part can run.
        Raises WeightsError if the names and the weights do not fit.
        """
        compiled = library.load()
        if compiled is None:
            return None
        try:
            text = read_metadata(graph, RECIPE)
            if text is None:
                return None
            recipe, tensors = json.loads(text), read_tensors(graph)
            embedding_width, width, n_neurons = _check_shapes(recipe, tensors)
            head = width // recipe["n_heads"]
            if width % GROUP or n_neurons % GROUP or head % REGISTER or embedding_width % PAIRS:
                return None
            bfloat16 = not head % PAIRS and bool(compiled.supports_bfloat16())
            return cls(recipe, tensors, bfloat16=bfloat16)
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise WeightsError(
                f"{source} is damaged: the weights that it names do not fit ({error}). Save or "
                "copy the pipeline again."
            ) from error

    def encode(self, batch: RaggedBatch, rows: np.ndarray, *, threads: int) -> None:
        """Compute the last hidden states of a batch.

        rows: (n_rows, width) float32, contiguous. Those that `batch.targets` names are written.
        threads: CPU threads, 1 or more, the same in each call of a process.
        """
        ids, lengths, targets = batch.ids, batch.lengths, batch.targets
        least, largest, length = ids.min(), ids.max(), lengths.max()
        if least < 0 or largest >= self.n_pieces or length > self.n_positions:
            raise WeightsError(
                f"A window of {length:,} pieces, numbers {least:,} to {largest:,}, is beyond the "
                f"{self.n_positions:,} positions and {self.n_pieces:,} pieces of this encoder: "
                "its tokenizer is another encoder's. Save or copy the pipeline again."
            )
        if targets.max() >= len(rows) or rows.shape[1] != self.width:
            raise ValueError(f"{len(rows)} rows of {rows.shape[1]}, for row {targets.max()}")
        starts = np.append(0, np.cumsum(lengths))

        def encode(begin: int, end: int) -> None:
            pieces = slice(starts[begin], starts[end])
            seconds = None if batch.seconds is None else batch.seconds[begin:end]
            self._encode(ids[pieces], lengths[begin:end], targets[pieces], seconds, rows)

        first, *rest = _split(lengths, threads)
        futures = []
        for part in rest:
            try:
                futures.append(self._pool(threads).submit(encode, *part))
            except RuntimeError:  # the interpreter shuts down, and starts no more threads
                encode(*part)
        encode(*first)
        for future in futures:
            future.result()

    def _encode(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        targets: np.ndarray,
        seconds: np.ndarray | None,
        rows: np.ndarray,
    ) -> None:
        compiled = library.load()
        assert compiled is not None
        windows = library.Windows(
            n_windows=len(lengths),
            lengths=lengths.ctypes.data,
            ids=ids.ctypes.data,
            targets=targets.ctypes.data,
            seconds=None if seconds is None else seconds.ctypes.data,
        )
        encoder, address = ctypes.byref(self._encoder), ctypes.byref(windows)
        n_bytes = compiled.scratch_size(encoder, address)
        scratch = getattr(self._local, "scratch", None)
        if scratch is None or scratch.nbytes < n_bytes:
            scratch = self._local.scratch = library.empty(n_bytes)
        compiled.encode(encoder, address, scratch.ctypes.data, rows.ctypes.data)

    def _pool(self, threads: int) -> ThreadPoolExecutor:
        """The threads of this process, beside the ones that call."""
        process = os.getpid()
        if process not in self._pools:
            # Several callers may get here at once: a pool has no threads before its first work.
            pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="spacy-distil-encoder")
            self._pools.setdefault(process, pool)
        return self._pools[process]

    # Weights

    def _layers_of(self, recipes: list[Mapping[str, Any]]) -> list[library.Layer]:
        """Pack the weights of all layers, of shared ones once."""
        different = {json.dumps(names): names for names in recipes}
        packed = {key: self._layer(names) for key, names in different.items()}
        return [packed[json.dumps(names)] for names in recipes]

    def _projection(self, names: list[str] | None) -> dict[str, int]:
        if names is None:
            return {}
        weight, bias = (self._tensors[name] for name in names)
        n_in, n_out = weight.shape
        packed = weight.reshape(n_in, n_out // REGISTER, REGISTER).transpose(1, 0, 2)
        return {
            "projection": self._keep(packed, np.float32),
            "projection_bias": self._keep(bias, np.float32),
        }

    def _layer(self, names: Mapping[str, Any]) -> library.Layer:
        inputs = [names[part] for part in ("query", "key", "value")]
        weight, scales = (
            np.concatenate([self._tensors[part[i]] for part in inputs], axis=-1) for i in (0, 1)
        )
        bias = self._tensors[names["attention_bias"]]
        return library.Layer(
            attention_in=self._linear(weight, scales, bias, ZERO_POINT),
            attention_out=self._named_linear(names["attention_out"], ZERO_POINT),
            up=self._named_linear(names["up"], ZERO_POINT),
            down=self._named_linear(names["down"], 0),
            attention_norm=self._norm(names["attention_norm"]),
            output_norm=self._norm(names["output_norm"]),
        )

    def _named_linear(self, names: list[str], zero_point: int) -> library.Linear:
        weight, scales, bias = (self._tensors[name] for name in names)
        return self._linear(weight, scales, bias, zero_point)

    def _linear(
        self, weight: np.ndarray, scales: np.ndarray, bias: np.ndarray, zero_point: int
    ) -> library.Linear:
        n_in, n_out = weight.shape
        packed = weight.reshape(n_in // 4, 4, n_out // GROUP, GROUP).transpose(2, 0, 3, 1)
        return library.Linear(
            n_in=n_in,
            n_out=n_out,
            weight=self._keep(packed, np.int8),
            scales=self._keep(scales, np.float32),
            bias=self._keep(bias, np.float32),
            start=self._keep(-zero_point * weight.sum(axis=0, dtype=np.int64), np.int32),
        )

    def _norm(self, names: list[str]) -> library.Norm:
        weight, bias = (self._keep(self._tensors[name], np.float32) for name in names)
        return library.Norm(weight, bias)

    def _keep(self, array: np.ndarray, dtype: type) -> int:
        """Copy an array to where the compiled part reads it. RETURNS: its address."""
        copy = library.aligned(array.astype(dtype, copy=False))
        self._kept.append(copy)
        return int(copy.ctypes.data)


def _split(lengths: np.ndarray, n_parts: int) -> Iterator[tuple[int, int]]:
    """Split windows into parts with about as many pieces. YIELDS: first and end of each."""
    if n_parts == 1:
        yield 0, len(lengths)
        return
    sums = np.cumsum(lengths)
    middles = sums - lengths / 2
    ends = np.searchsorted(middles, sums[-1] * np.arange(1, n_parts + 1) / n_parts)
    begin = 0
    for end in ends:
        if end > begin:
            yield begin, int(end)
            begin = int(end)


def _check_shapes(
    recipe: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[int, int, int]:
    """Check the weights, which the compiled part reads without looking.

    RETURNS: width of the embeddings and of the layers, and neurons of the feed-forward layers.
    Raises ValueError if a weight has another type or shape than the others demand.
    """

    def check(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> None:
        tensor = tensors[name]
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            raise ValueError(f"{name} is {tensor.dtype} of {tensor.shape}, not {dtype} of {shape}")

    def check_linear(names: list[str], n_in: int, n_out: int) -> None:
        weight, *vectors = names
        check(weight, (n_in, n_out), np.int8)
        for vector in vectors:
            check(vector, (n_out,))

    def check_norm(names: list[str], width: int) -> None:
        for vector in names:
            check(vector, (width,))

    pieces, scales = recipe["pieces"]
    bits = recipe["embedding_bits"]
    if bits not in (8, 4):
        raise ValueError(f"embedding_bits = {bits!r}")
    n_pieces, embedding_width = tensors[pieces].shape
    embedding_width *= 8 // bits
    width, n_neurons = tensors[recipe["layers"][0]["up"][0]].shape
    n_heads, epsilon = recipe["n_heads"], recipe["epsilon"]
    if type(n_heads) is not int or n_heads < 1 or width % n_heads:
        raise ValueError(f"{n_heads!r} heads of {width} numbers")
    if not 0 < np.float32(epsilon) < 1:
        raise ValueError(f"epsilon = {epsilon!r}")
    check(pieces, (n_pieces, embedding_width * bits // 8), np.int8 if bits == 8 else np.uint8)
    check(scales, (n_pieces, 1))
    check(recipe["positions"], (len(tensors[recipe["positions"]]), embedding_width))
    if "second_type" in recipe:
        check(recipe["second_type"], (embedding_width,))
    check_norm(recipe["embedding_norm"], embedding_width)
    if "projection" in recipe:
        weight, bias = recipe["projection"]
        check(weight, (embedding_width, width))
        check(bias, (width,))
    elif embedding_width != width:
        raise ValueError(f"embeddings of {embedding_width} for layers of {width}")
    for layer in recipe["layers"]:
        for part in ("query", "key", "value", "attention_out"):
            check_linear(layer[part], width, width)
        check(layer["attention_bias"], (3 * width,))
        check_linear(layer["up"], width, n_neurons)
        check_linear(layer["down"], n_neurons, width)
        check_norm(layer["attention_norm"], width)
        check_norm(layer["output_norm"], width)
    return embedding_width, width, n_neurons
