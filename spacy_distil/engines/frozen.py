"""Who runs a frozen encoder: compiled code of ours, where it can, or ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from thinc.api import Ops
from thinc.types import Floats2d

from spacy_distil.encoding import Batch, Pooling, RaggedBatch, split_docs, to_ops
from spacy_distil.engines.files import GRAPH, forget_pages
from spacy_distil.engines.fused import FusedEncoder, sum_rows
from spacy_distil.engines.onnx import (
    SECTION,
    FrozenEngine,
    OnnxEngine,
    check_files,
    check_width,
    count_cores,
    count_threads,
)
from spacy_distil.runs.digests import Content

# The encoder takes care of the caches itself, and large batches have fewer arrays to make.
BATCH_PIECES = 4096
# This environment variable, set to 0, has ONNX Runtime run all encoders.
FUSED_SETTING = "SPACY_DISTIL_FUSED"


def load_frozen(
    files: Mapping[str, Content], *, threads: int | None = None
) -> OnnxEngine | FusedEngine:
    """Load what `FrozenEngine.to_files` returned, as a `FusedEngine` if that can run it.

    Raises WeightsError if it is damaged or has another format.
    """
    if os.environ.get(FUSED_SETTING) != "0":
        config = check_files(files)
        encoder = FusedEncoder.from_graph(files[GRAPH], GRAPH)
        if encoder is not None:
            check_width(encoder.width, config[SECTION]["width"])
            forget_pages(files[GRAPH])
            return FusedEngine(config, files[GRAPH], encoder, threads=threads)
    return OnnxEngine.from_files(files, threads=threads)


class FusedEngine(FrozenEngine):
    """Runs the weights of a graph with compiled code."""

    runtime = "fused"

    def __init__(
        self,
        config: Mapping[str, Any],
        graph: Content,
        encoder: FusedEncoder,
        *,
        threads: int | None,
    ) -> None:
        """config, graph, threads: as in `FrozenEngine`.

        encoder: of the graph.
        """
        super().__init__(config, graph, threads=threads)
        self._encoder = encoder
        self._thread_counts: dict[int, int] = {}  # by process

    @property
    def batch_pieces(self) -> int:
        return BATCH_PIECES

    def predict(self, batch: Batch, ops: Ops) -> Floats2d:
        real = batch.mask.astype(bool)
        targets = np.full(batch.ids.shape, -1, np.int32)
        targets.flat[batch.positions] = np.arange(len(batch.positions))
        lengths = real.sum(axis=1, dtype=np.int32)
        seconds = None if batch.seconds is None else batch.seconds.astype(np.int32)
        ids = batch.ids[real].astype(np.int32)
        ragged = RaggedBatch(ids, lengths, targets[real], seconds)
        rows = np.empty((len(batch.positions), self.width), np.float32)
        self._encoder.encode(ragged, rows, threads=self._count_threads())
        return cast(Floats2d, to_ops(ops, rows))

    def predict_tokens(
        self,
        batches: Iterable[RaggedBatch],
        pooling: Pooling,
        n_tokens: Sequence[int],
        ops: Ops,
    ) -> list[Floats2d]:
        threads = self._count_threads()
        rows = np.empty((pooling.n_rows, self.width), np.float32)
        for batch in batches:
            self._encoder.encode(batch, rows, threads=threads)
        if pooling.weights is None:
            tokens, _ = pooling.forward(ops, cast(Floats2d, to_ops(ops, rows)))
            return [part.copy() for part in split_docs(tokens, n_tokens)]
        return [
            cast(Floats2d, to_ops(ops, vectors)) for vectors in sum_rows(rows, pooling, n_tokens)
        ]

    def _count_threads(self) -> int:
        """Count the threads of this process, which may be a forked worker."""
        process = os.getpid()
        if process not in self._thread_counts:
            self._thread_counts[process] = count_threads(self._threads) or count_cores()
        return self._thread_counts[process]
