"""The graphs to compare: ours, and those that ONNX Runtime's tools make of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic

from spacy_distil.component.shim import EncoderShim
from spacy_distil.engines.files import GRAPH
from spacy_distil.engines.onnx import FrozenEngine
from spacy_distil.errors import ConfigError, DistilError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision

ABOUT = {
    "fp32": "our float32 graph, as it is run",
    "fp32, joined": "the same after ONNX Runtime's optimizer, shapes of hidden states declared",
    "int8 by row": "our int8 graph, as ONNX Runtime runs it",
    "int8 fused": "the weights of the same graph, as our compiled code runs them",
    "int8 by row, joined": "the same after the optimizer, shapes of hidden states declared",
    "int8 by batch": "quantize_dynamic of the float32 graph (MatMul, QInt8, per channel)",
    "int8 by batch, optimized": "the same after the optimizer, as ONNX Runtime is usually run",
    "8-bit weights": "MatMulNBits (blocks of 128, accuracy level 4), after the optimizer",
}


def make_shims(
    source: SourceEncoder, threads: int
) -> tuple[dict[str, EncoderShim], dict[str, str]]:
    """Make an encoder with each graph.

    RETURNS: the encoders, and the reasons why graphs could not be made or run here, both by name.
    """
    files = source.to_files(Precision())
    layers = frozenset(range(source.n_layers))
    fp32 = files[GRAPH]
    fused = source.to_files(Precision(layers, embeddings=True))[GRAPH]
    rows = without_recipe(fused)
    makers: dict[str, Callable[[], bytes]] = {
        "fp32": lambda: fp32,
        "fp32, joined": lambda: optimize(declare_shapes(fp32)),
        "int8 by row": lambda: rows,
        "int8 fused": lambda: fused,
        "int8 by row, joined": lambda: optimize(declare_shapes(rows)),
        "int8 by batch": lambda: quantize_by_batch(fp32),
        "int8 by batch, optimized": lambda: optimize(quantize_by_batch(fp32)),
        "8-bit weights": lambda: optimize(quantize_weights(fp32)),
    }
    settings = replace(source.shim.settings, engine="onnx", threads=threads)
    shims, left_out = {}, {}
    for name, make in makers.items():
        try:
            shim = EncoderShim(settings).from_files({**files, GRAPH: make()})
            if name == "int8 fused" and runtime_of(shim) != "fused":
                raise ConfigError("The compiled code is missing, or cannot run on this CPU.")
            shims[name] = shim
        except DistilError as error:
            left_out[name] = str(error)
    return shims, left_out


def runtime_of(shim: EncoderShim) -> str:
    """Return who runs a graph: see `FrozenEngine.runtime`."""
    engine = shim.engine
    assert isinstance(engine, FrozenEngine)
    return engine.runtime


def without_recipe(graph: bytes) -> bytes:
    """Drop the names of the weights, so that ONNX Runtime runs the graph."""
    model = onnx.load_from_string(graph)
    del model.metadata_props[:]
    return model.SerializeToString()


def declare_shapes(graph: bytes) -> bytes:
    """Declare the shapes of the hidden states in a graph, as exporters do.

    ONNX Runtime does not infer them here, and it only joins operators whose shapes it knows.
    """
    model = onnx.load_from_string(graph)
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            shape = ["n_windows", "length", sizes[node.input[1]]]
            model.graph.value_info.append(
                onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape)
            )
    return model.SerializeToString()


def optimize(graph: bytes) -> bytes:
    """Run ONNX Runtime's optimizer on a graph, for the CPU of this machine."""
    with tempfile.TemporaryDirectory() as directory:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(directory) / GRAPH)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return (Path(directory) / GRAPH).read_bytes()


def quantize_by_batch(graph: bytes) -> bytes:
    """Apply ONNX Runtime's dynamic quantization: one scale for all activations of a batch."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / GRAPH
        quantize_dynamic(
            onnx.load_from_string(graph),
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return file.read_bytes()


def quantize_weights(graph: bytes) -> bytes:
    """Quantize only the weights, to 8 bits, with a scale for each block of 128."""
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load_from_string(graph), bits=8, block_size=128, accuracy_level=4
        )
    except (ImportError, TypeError) as error:
        raise ConfigError(
            f"onnxruntime {onnxruntime.__version__} has no such quantizer ({error})."
        ) from error
    quantizer.process()
    quantized: bytes = quantizer.model.model.SerializeToString()
    return quantized
