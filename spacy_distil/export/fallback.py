"""Which layers stay in float32, where int8 loses too much: those that lose most, by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from spacy.tokens import Doc
from thinc.api import NumpyOps

from spacy_distil.component.shim import EncoderShim
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision


class Int8Plan:
    """The layers of a pipeline's encoders that are in int8.

    fp32_layers: by encoder, the layers that are not, in the order in which they were taken out.
    sensitivity: by encoder, of each layer the squared error of the token vectors when it alone is
        in int8, relative to their square; empty until a layer has to be chosen.
    """

    def __init__(self, encoders: dict[str, SourceEncoder], *, reduced_range: bool) -> None:
        self.encoders = encoders
        self.reduced_range = reduced_range
        self.fp32_layers: dict[str, list[int]] = {place: [] for place in encoders}
        self.sensitivity: dict[str, list[float]] = {}

    def precision(self, place: str) -> Precision:
        """What of an encoder is in int8."""
        layers = frozenset(range(self.encoders[place].n_layers)) - {*self.fp32_layers[place]}
        return Precision(layers, embeddings=True, reduced_range=self.reduced_range)

    def can_fall_back(self, most: int | None) -> bool:
        """Whether some encoder may have one more layer in float32.

        most: of each encoder; None for half of its layers.
        """
        return any(map(self._rest, self.encoders, [most] * len(self.encoders)))

    def fall_back(self, docs: Sequence[Doc], most: int | None) -> None:
        """Take one more layer of each encoder out of int8: the most sensitive of the rest.

        docs: to measure on.
        """
        for place, encoder in self.encoders.items():
            if rest := self._rest(place, most):
                if place not in self.sensitivity:
                    self.sensitivity[place] = measure_sensitivity(
                        encoder, docs, reduced_range=self.reduced_range
                    )
                errors = self.sensitivity[place]
                self.fp32_layers[place].append(max(rest, key=errors.__getitem__))

    def _rest(self, place: str, most: int | None) -> list[int]:
        """The layers that may still be taken out."""
        n_layers, taken = self.encoders[place].n_layers, self.fp32_layers[place]
        if len(taken) >= (n_layers // 2 if most is None else most):
            return []
        return [layer for layer in range(n_layers) if layer not in taken]

    def __str__(self) -> str:
        kept = [
            f"{place}: {', '.join(map(str, sorted(layers)))}"
            for place, layers in self.fp32_layers.items()
            if layers
        ]
        return f"int8, except for layers ({'; '.join(kept)})" if kept else "int8"


def measure_sensitivity(
    encoder: SourceEncoder, docs: Sequence[Doc], *, reduced_range: bool = False
) -> list[float]:
    """Of each layer, the squared error of the token vectors when it alone is in int8.

    Relative to the square of the vectors; on the same graph otherwise in float32.
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
