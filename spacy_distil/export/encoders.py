"""Find the encoders of a pipeline, and make their files for the ONNX engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from spacy.language import Language
from thinc.api import Model

from spacy_distil.component.shim import EncoderShim
from spacy_distil.cpu import cpu_model
from spacy_distil.engines.files import (
    CONFIG,
    GRAPH,
    TOKENIZER,
    dump_config,
    first_position,
    parse_config,
)
from spacy_distil.engines.onnx import FORMAT, SECTION
from spacy_distil.errors import ConfigError
from spacy_distil.export.families import EncoderWeights, build_graph, read_weights
from spacy_distil.export.families.bert import BertWeights
from spacy_distil.export.graph import Precision
from spacy_distil.export.weights import count_parameters
from spacy_distil.pairs.layers import PAIR_ROWS, encoder_of

Files = dict[str, bytes]


class SourceEncoder:
    """An encoder on the torch engine, the source of graphs.

    files: its files, by name; `None` takes them from the shim.
    reads_pairs: whether a pipe encodes pairs of texts with it. The graph then knows the second type
        of tokens, if the family has one.
    weights: the weights in these files.
    n_parameters: number of parameters.
    """

    def __init__(
        self, shim: EncoderShim, files: Files | None = None, *, reads_pairs: bool = False
    ) -> None:
        self.shim = shim
        self.reads_pairs = reads_pairs
        self.files = shim.to_files() if files is None else files
        self.weights: EncoderWeights = read_weights(self.files, pairs=reads_pairs)
        self.n_parameters = count_parameters(self.files)

    @property
    def n_layers(self) -> int:
        return len(self.weights.layers)

    def to_files(self, precision: Precision) -> Files:
        """Make the files of this encoder for the ONNX engine.

        Positions that the setting `window` leaves out are left out of the graph.
        """
        config = parse_config(self.files)
        weights, n_parameters = self.weights, self.n_parameters
        window = self.shim.settings.window
        if isinstance(weights, BertWeights) and weights.distance_bias is None and window:
            n_dropped = len(weights.positions) - window
            weights = replace(weights, positions=weights.positions[:window])
            n_parameters -= n_dropped * weights.positions.shape[1]
            config["max_position_embeddings"] = window + first_position(config)
        has_types = isinstance(weights, BertWeights) and weights.second_type is not None
        if (
            not isinstance(weights, BertWeights)
            and self.reads_pairs
            and (config.get("type_vocab_size") or 1) > 1
        ):
            raise ConfigError(
                f"A {config['model_type']!r} encoder with type_vocab_size = "
                f"{config['type_vocab_size']} cannot be turned into an ONNX graph for pairs of "
                "texts. Take one without types of tokens, or of the family of BERT."
            )
        config[SECTION] = {
            "format": FORMAT,
            "width": weights.width,
            "n_parameters": n_parameters,
            **({"n_token_types": 2} if has_types else {}),
            "int8_layers": sorted(precision.layers),
            "embedding_bits": precision.embedding_bits if precision.embeddings else 32,
            "reduced_range": precision.reduced_range,
            "checked_on": cpu_model(),
        }
        return {
            CONFIG: dump_config(config),
            GRAPH: build_graph(weights, precision),
            TOKENIZER: self.files[TOKENIZER],
        }

    def to_shim(self, precision: Precision) -> EncoderShim:
        """Put this encoder on the ONNX engine."""
        settings = replace(self.shim.settings, engine="onnx")
        return EncoderShim(settings).from_files(self.to_files(precision))


def find_encoders(nlp: Language) -> dict[str, EncoderShim]:
    """Find all encoders of a pipeline.

    RETURNS: encoders by the name of their pipe. The second encoder of a pipe is "NAME 2".
    """
    encoders: dict[str, EncoderShim] = {}
    counts: Counter[str] = Counter()
    for pipe, model, i in _shim_positions(nlp):
        counts[pipe] += 1
        name = f"{pipe} {counts[pipe]}" if counts[pipe] > 1 else pipe
        encoders[name] = cast(EncoderShim, model.shims[i])
    return encoders


def encodes_pairs(nlp: Language, shim: EncoderShim) -> bool:
    """Tell whether a pipe encodes pairs of texts with an encoder."""
    models = (getattr(pipe, "model", None) for _, pipe in nlp.components)
    return any(
        encoder_of(node) is shim
        for model in models
        if isinstance(model, Model)
        for node in model.walk()
        if node.name == PAIR_ROWS
    )


def replace_encoders(nlp: Language, shims: dict[str, EncoderShim]) -> None:
    """Replace all encoders of a pipeline. shims: in the order of `find_encoders`."""
    for (_, model, i), shim in zip(list(_shim_positions(nlp)), shims.values(), strict=True):
        model.shims[i] = shim


def _shim_positions(nlp: Language) -> Iterator[tuple[str, Model, int]]:
    """Find each encoder. YIELDS: name of the pipe, model, index of the shim in the model."""
    for name, pipe in nlp.components:
        model = getattr(pipe, "model", None)
        if isinstance(model, Model):
            for node in model.walk():
                for i, shim in enumerate(node.shims):
                    if isinstance(shim, EncoderShim):
                        yield name, node, i
