"""The encoders of a pipeline, and their files for the ONNX engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from spacy.language import Language
from thinc.api import Model

from spacy_distil.component.shim import EncoderShim
from spacy_distil.cpu import cpu_model
from spacy_distil.engines.files import CONFIG, GRAPH, TOKENIZER, dump_config, parse_config
from spacy_distil.engines.onnx import FORMAT, SECTION
from spacy_distil.export.families import EncoderWeights, build_graph, read_weights
from spacy_distil.export.graph import Precision
from spacy_distil.export.weights import count_parameters

Files = dict[str, bytes]


class SourceEncoder:
    """An encoder on the torch engine, as something to make graphs from.

    files: what it is saved as.
    weights: what they hold.
    n_parameters: how many.
    """

    def __init__(self, shim: EncoderShim, files: Files | None = None) -> None:
        self.shim = shim
        self.files = shim.to_files() if files is None else files
        self.weights: EncoderWeights = read_weights(self.files)
        self.n_parameters = count_parameters(self.files)

    @property
    def n_layers(self) -> int:
        return len(self.weights.layers)

    def to_files(self, precision: Precision) -> Files:
        """The files of the same encoder for the ONNX engine."""
        config = parse_config(self.files)
        config[SECTION] = {
            "format": FORMAT,
            "width": self.weights.width,
            "n_parameters": self.n_parameters,
            "int8_layers": sorted(precision.layers),
            "int8_embeddings": precision.embeddings,
            "reduced_range": precision.reduced_range,
            "checked_on": cpu_model(),
        }
        return {
            CONFIG: dump_config(config),
            GRAPH: build_graph(self.weights, precision),
            TOKENIZER: self.files[TOKENIZER],
        }

    def to_shim(self, precision: Precision) -> EncoderShim:
        """The same encoder on the ONNX engine."""
        settings = replace(self.shim.settings, engine="onnx")
        return EncoderShim(settings).from_files(self.to_files(precision))


def find_encoders(nlp: Language) -> dict[str, EncoderShim]:
    """All encoders of a pipeline by the name of their pipe; a pipe's second one is "NAME 2"."""
    found: dict[str, EncoderShim] = {}
    counts: Counter[str] = Counter()
    for pipe, model, i in _places(nlp):
        counts[pipe] += 1
        place = f"{pipe} {counts[pipe]}" if counts[pipe] > 1 else pipe
        found[place] = cast(EncoderShim, model.shims[i])
    return found


def replace_encoders(nlp: Language, shims: dict[str, EncoderShim]) -> None:
    """Put other encoders into the places that `find_encoders` names."""
    for (_, model, i), shim in zip(list(_places(nlp)), shims.values(), strict=True):
        model.shims[i] = shim


def _places(nlp: Language) -> Iterator[tuple[str, Model, int]]:
    """Pipe, model and index among its shims, of each encoder."""
    for name, pipe in nlp.components:
        model = getattr(pipe, "model", None)
        if isinstance(model, Model):
            for node in model.walk():
                for i, shim in enumerate(node.shims):
                    if isinstance(shim, EncoderShim):
                        yield name, node, i
