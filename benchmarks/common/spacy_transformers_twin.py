"""A twin of a pipeline on spacy-transformers: same weights, same pipes, stock settings.

This is the reverse of `spacy distil convert`. A benchmark against the twin compares code, because
the weights are the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import spacy
import srsly
from spacy.language import Language
from spacy.training import Example
from thinc.api import Model

from spacy_distil.engines.files import CONFIG, TOKENIZER, WEIGHTS, longest_window

# The settings of `spacy init config --gpu` and the factory's defaults.
TRANSFORMER = {
    "max_batch_items": 4096,
    "model": {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "tokenizer_config": {"use_fast": True},
        "get_spans": {
            "@span_getters": "spacy-transformers.strided_spans.v1",
            "window": 128,
            "stride": 96,
        },
    },
}
LISTENER = {
    "@architectures": "spacy-transformers.TransformerListener.v1",
    "grad_factor": 1.0,
    "pooling": {"@layers": "reduce_mean.v1"},
}
ENCODER_FACTORY = "distil_transformer"


def write_encoder(component: Path, output: Path) -> Path:
    """Copy the encoder of a component into a directory that transformers can load.

    component: directory with config.json, model.safetensors and the tokenizer.json of a WordPiece
        tokenizer.
    RETURNS: `output`.
    """
    output.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        (output / name).write_bytes((component / name).read_bytes())
    config = json.loads((output / CONFIG).read_text(encoding="utf8"))
    normalizer = json.loads((output / TOKENIZER).read_text(encoding="utf8"))["normalizer"]
    settings = {
        "model_max_length": longest_window(config),
        "do_lower_case": bool(normalizer and normalizer.get("lowercase", True)),
    }
    (output / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf8")
    return output


def make_twin(ours: Language, encoder: Path, examples: Sequence[Example]) -> Language:
    """Make the twin of a trained pipeline.

    ours: has a `distil_transformer` that pools by mean, and pipes that listen to it.
    encoder: directory of its weights and tokenizer, from `write_encoder`.
    examples: annotated documents, from which spaCy infers the shapes of the pipes.
    """
    twin = spacy.blank(ours.lang or "xx")
    settings = copy.deepcopy(TRANSFORMER)
    settings["model"]["name"] = str(encoder)  # type: ignore[index]
    listening: dict[str, Any] = {}
    with TemporaryDirectory() as directory:
        for name, pipe in ours.pipeline:
            if ours.get_pipe_meta(name).factory == ENCODER_FACTORY:
                twin.add_pipe("transformer", name=name, config=settings)
                continue
            listening[name] = pipe
            config = copy.deepcopy(dict(ours.get_pipe_config(name)))
            config["model"]["tok2vec"] = LISTENER
            twin.add_pipe(config.pop("factory"), name=name, config=config)
            # The weights depend on the order of the labels.
            labels = Path(directory) / f"{name}.json"
            srsly.write_json(labels, listening[name].label_data)
            reader = {"@readers": "spacy.read_labels.v1", "path": str(labels)}
            twin.config["initialize"]["components"][name] = {"labels": reader}
        twin.initialize(lambda: examples)
    # The label files are deleted by now.
    twin.config["initialize"]["components"] = {}
    for name, trained in listening.items():
        pipe_of_twin: Any = twin.get_pipe(name)
        if list(pipe_of_twin.labels) != list(trained.labels):
            raise ValueError(f"{name}: labels {trained.labels} became {pipe_of_twin.labels}.")
        copy_parameters(trained.model, pipe_of_twin.model)
    return twin


def copy_parameters(source: Model, target: Model) -> None:
    """Copy all weights of a model into another one. Only layers without weights may differ."""
    nodes = [[node for node in model.walk() if node.param_names] for model in (source, target)]
    names = [[node.name for node in side] for side in nodes]
    if names[0] != names[1]:
        raise ValueError(f"Layers with weights differ: {names[0]} and {names[1]}.")
    for mine, theirs in zip(*nodes, strict=True):
        for name in mine.param_names:
            value = mine.get_param(name)
            if theirs.get_param(name).shape != value.shape:
                raise ValueError(
                    f"{mine.name}.{name}: {value.shape} and {theirs.get_param(name).shape}."
                )
            theirs.set_param(name, value.copy())
