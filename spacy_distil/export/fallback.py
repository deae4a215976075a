"""The layers that stay in float32 if int8 loses too much: those whose vectors lose most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from spacy.tokens import Doc
from thinc.api import NumpyOps

from spacy_distil.component.shim import EncoderShim
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision


class Int8Plan:
    """The choice of layers that are in int8, for each encoder of a pipeline.

    fp32_layers: by encoder, the layers in float32, in the order of their choice.
    sensitivity: by encoder, the result of `measure_sensitivity`; empty until it is needed.
    """

    def __init__(
        self,
        encoders: dict[str, SourceEncoder],
        *,
        reduced_range: bool,
        embedding_bits: Literal[8, 4] = 8,
    ) -> None:
        self.encoders = encoders
        self.embedding_bits = embedding_bits
        self.reduced_range = reduced_range
        self.fp32_layers: dict[str, list[int]] = {name: [] for name in encoders}
        self.sensitivity: dict[str, list[float]] = {}

    def precision(self, name: str) -> Precision:
        """The precision of an encoder's layers."""
        layers = frozenset(range(self.encoders[name].n_layers)) - {*self.fp32_layers[name]}
        return Precision(
            layers,
            embeddings=True,
            embedding_bits=self.embedding_bits,
            reduced_range=self.reduced_range,
        )

    def can_fall_back(self, max_layers: int | None) -> bool:
        """Whether any encoder may have one more layer in float32.

        max_layers: number of layers of each encoder that may be in float32; `None` for half.
        """
        return any(self._int8_candidates(name, max_layers) for name in self.encoders)

    def fall_back(self, docs: Sequence[Doc], max_layers: int | None) -> None:
        """Move one more layer of each encoder to float32, the most sensitive one in int8.

        docs: documents to measure the sensitivity on.
        max_layers: as for `can_fall_back`.
        """
        for name, encoder in self.encoders.items():
            if candidates := self._int8_candidates(name, max_layers):
                if name not in self.sensitivity:
                    self.sensitivity[name] = measure_sensitivity(
                        encoder, docs, reduced_range=self.reduced_range
                    )
                errors = self.sensitivity[name]
                self.fp32_layers[name].append(max(candidates, key=errors.__getitem__))

    def _int8_candidates(self, name: str, max_layers: int | None) -> list[int]:
        """The layers in int8 that may still move to float32."""
        n_layers, in_fp32 = self.encoders[name].n_layers, self.fp32_layers[name]
        if len(in_fp32) >= (n_layers // 2 if max_layers is None else max_layers):
            return []
        return [layer for layer in range(n_layers) if layer not in in_fp32]

    def __str__(self) -> str:
        exceptions = [
            f"{name}: {', '.join(map(str, sorted(layers)))}"
            for name, layers in self.fp32_layers.items()
            if layers
        ]
        return f"int8, except for layers ({'; '.join(exceptions)})" if exceptions else "int8"


def measure_sensitivity(
    encoder: SourceEncoder, docs: Sequence[Doc], *, reduced_range: bool = False
) -> list[float]:
    """Measure the error of each layer by putting it alone into int8.

    RETURNS: by layer, the squared error of the token vectors, relative to their square in float32.
    """
    exact = _vectors(encoder.to_shim(Precision()), docs)
    square = np.square(exact).sum() or 1.0  # 0 where no document has a piece
    errors = []
    for layer in range(encoder.n_layers):
        precision = Precision(frozenset({layer}), reduced_range=reduced_range)
        rounded = _vectors(encoder.to_shim(precision), docs)
        errors.append(float(np.square(rounded - exact).sum() / square))
    return errors


def _vectors(shim: EncoderShim, docs: Sequence[Doc]) -> np.ndarray:
    vectors: list[Any] = [*shim.predict_docs(docs, NumpyOps())]
    return np.concatenate(vectors)
