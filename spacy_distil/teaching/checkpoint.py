"""Checkpoints that a killed run goes on from: weights of everything, and the optimizers' states."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from spacy.language import Language
from thinc.api import Model, Optimizer

from spacy_distil.engines import TrainableEngine
from spacy_distil.shim import EncoderShim
from spacy_distil.teaching.hidden import HiddenStates

MODEL, HEADS, ENCODERS, PROJECTIONS, STATE = (
    "model",
    "optimizer.safetensors",
    "encoder-{}.safetensors",
    "projections.bin",
    "state.json",
)
# What thinc's optimizer keeps of each parameter.
_MOMENTS = ("mom1", "mom2", "averages")


class Checkpoints:
    """The newest checkpoint of one run, there whole or not at all.

    directory: holds one directory `step-N`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def newest(self) -> Path | None:
        """The directory of the newest checkpoint."""
        return max(self.directory.glob("step-*"), default=None)

    def save(
        self,
        step: int,
        nlp: Language,
        optimizer: Optimizer,
        hidden: HiddenStates | None,
        state: Mapping[str, Any],
    ) -> None:
        """Save under another name, rename, and drop the one before.

        state: JSON, of the loop.
        """
        unfinished = self.directory / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        nlp.to_disk(unfinished / MODEL)
        arrays, counts = optimizer_to_arrays(optimizer, _models(nlp, hidden))
        save_file(arrays, unfinished / HEADS)
        for i, encoder in enumerate(_encoders(nlp)):
            data = _trainable(encoder).optimizer_to_bytes()
            (unfinished / ENCODERS.format(i)).write_bytes(data)
        if hidden is not None:
            (unfinished / PROJECTIONS).write_bytes(hidden.to_bytes())
        text = json.dumps({"step": step, "updates": counts, "loop": state})
        (unfinished / STATE).write_text(text, encoding="utf8")
        before = list(self.directory.glob("step-*"))
        unfinished.rename(self.directory / f"step-{step:08d}")
        for old in before:
            shutil.rmtree(old)

    def load(
        self, path: Path, nlp: Language, optimizer: Optimizer, hidden: HiddenStates | None
    ) -> tuple[int, dict[str, Any]]:
        """Put everything back as it was.

        optimizer: a new one, made of the config.
        RETURNS (step, state): as they were given to `save`.
        """
        nlp.from_disk(path / MODEL)
        saved = json.loads((path / STATE).read_text(encoding="utf8"))
        if hidden is not None:
            hidden.from_bytes((path / PROJECTIONS).read_bytes())
        arrays = load_file(path / HEADS)
        optimizer_from_arrays(optimizer, _models(nlp, hidden), arrays, saved["updates"])
        for i, encoder in enumerate(_encoders(nlp)):
            _trainable(encoder).optimizer_from_bytes((path / ENCODERS.format(i)).read_bytes())
        return saved["step"], saved["loop"]

    def remove(self) -> None:
        """Drop all of it."""
        shutil.rmtree(self.directory, ignore_errors=True)


def optimizer_to_arrays(
    optimizer: Optimizer, models: Mapping[str, Model]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The state of thinc's optimizer, by names that mean the same in another process.

    thinc knows a parameter by the number of its node, which is given out as nodes are made. Here it
    is known by the node's place in the walk through its model.

    models: by name; the name goes into the keys.
    RETURNS (arrays, counts): moments and averages; and updates so far, of each parameter.
    """
    arrays, counts = {}, {}
    for name, key in _parameters(models):
        for moment in _MOMENTS:
            value = (getattr(optimizer, moment) or {}).get(key)
            if value is not None:
                arrays[f"{name}/{moment}"] = _ops(name, models).to_numpy(value)
        if key in optimizer.nr_update:
            counts[name] = optimizer.nr_update[key]
    return arrays, counts


def optimizer_from_arrays(
    optimizer: Optimizer,
    models: Mapping[str, Model],
    arrays: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
) -> None:
    """Give a new optimizer the state that `optimizer_to_arrays` returned."""
    optimizer.nr_update = defaultdict(int)
    for name, key in _parameters(models):
        for moment in _MOMENTS:
            value = arrays.get(f"{name}/{moment}")
            if value is not None:
                getattr(optimizer, moment)[key] = _ops(name, models).asarray(value)
        if name in counts:
            optimizer.nr_update[key] = counts[name]


def _ops(parameter: str, models: Mapping[str, Model]) -> Any:
    return models[parameter.rsplit("/", 2)[0]].ops


def _parameters(models: Mapping[str, Model]) -> Iterator[tuple[str, tuple[int, str]]]:
    """Each parameter's lasting name, and thinc's key of it."""
    for name, model in models.items():
        for i, node in enumerate(model.walk()):
            for parameter in node.param_names:
                yield f"{name}/{i}/{parameter}", (node.id, parameter)


def _models(nlp: Language, hidden: HiddenStates | None) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for name, pipe in nlp.pipeline:
        model = getattr(pipe, "model", None)
        if isinstance(model, Model):
            models[f"pipe {name}"] = model
    for i, projection in enumerate(hidden.projections if hidden is not None else []):
        models[f"projection {i}"] = projection
    return models


def _encoders(nlp: Language) -> Iterator[EncoderShim]:
    """Our encoders that learn, wherever they stand."""
    for model in _models(nlp, None).values():
        for node in model.walk():
            for shim in node.shims:
                if isinstance(shim, EncoderShim) and shim.is_loaded and shim.is_trainable:
                    yield shim


def _trainable(encoder: EncoderShim) -> TrainableEngine:
    engine = encoder.engine
    assert isinstance(engine, TrainableEngine)
    return engine
