"""The int8 products of an encoder, and how many of them a CPU can compute."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from spacy.tokens import Doc

from spacy_distil.encoding import encode_docs
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.weights import Linear


def measure_int8_rate(threads: int, repeats: int) -> float:
    """Measure ONNX Runtime's int8 products of 512 x 384 by 384 x 1536. RETURNS: products/s."""
    sizes = (512, 384, 1536)
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.integers(-127, 128, sizes[1:], np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, sizes[:2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, (sizes[0], sizes[2]))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": rng.integers(0, 256, sizes[:2], np.uint8)}
    seconds = []
    for _ in range(20 * repeats):
        start = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - start)
    return float(np.prod(sizes) / np.median(seconds))


def products_per_word(source: SourceEncoder, docs: Sequence[Doc]) -> float:
    """Count the products with the weights of an encoder's layers, for each word of the docs."""
    loaded, settings = source.shim.loaded, source.shim.settings
    encoded = encode_docs(
        docs,
        loaded.tokenizer,
        window=loaded.window,
        overlap=settings.overlap,
        pooling=settings.pooling,
    )
    n_special = loaded.tokenizer.n_special
    n_pieces = sum(len(window) + n_special for window in encoded.windows)
    n_products = sum(
        part.weight.size
        for layer in source.weights.layers
        for part in vars(layer).values()
        if isinstance(part, Linear)
    )
    return n_products * n_pieces / sum(map(len, docs))
