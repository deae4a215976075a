"""Checkpoints that a killed run goes on from: all weights, and the states of the optimizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from spacy.language import Language
from thinc.api import Model, Optimizer

from spacy_distil.component.shim import EncoderShim
from spacy_distil.distillation.pipeline.hidden import HiddenStates
from spacy_distil.engines import TrainableEngine
from spacy_distil.errors import DamagedError, DistilError
from spacy_distil.pipelines import count_bytes
from spacy_distil.runs.digests import check_directory, write_sums
from spacy_distil.runs.files import atomic_directory, remove_unfinished

MODEL, STUDENT, HEADS, ENCODERS, PROJECTIONS, STATE = (
    "model",
    "student",
    "optimizer.safetensors",
    "encoder-{}.safetensors",
    "projections.bin",
    "state.json",
)
# The arrays that thinc's optimizer keeps for each parameter.
_MOMENTS = ("mom1", "mom2", "averages")


class Checkpoints:
    """The newest checkpoint of a run. It is complete or absent.

    directory: holds one directory `step-N`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def newest(self) -> Path | None:
        """Return the directory of the newest checkpoint, or None."""
        return max(self.directory.glob("step-*"), default=None)

    def newest_step(self) -> int | None:
        """Return the last step of the newest checkpoint, or None."""
        path = self.newest()
        return None if path is None else int(path.name.removeprefix("step-"))

    def save(
        self,
        step: int,
        nlp: Language,
        optimizer: Optimizer,
        hidden: HiddenStates | None,
        state: Mapping[str, Any],
        save_student: Callable[[Path], None],
    ) -> Path:
        """Save a checkpoint, and delete the one before.

        The model that training goes on with and the student that the run hands out differ in
        averages of weights, for example.

        state: the state of the loop, as JSON.
        save_student: saves the student in a directory.
        RETURNS: the directory of the checkpoint.
        """
        remove_unfinished(self.directory)
        older = list(self.directory.glob("step-*"))
        needed = sum(map(count_bytes, older))
        path = self.directory / f"step-{step:08d}"
        with atomic_directory(path, needed=needed) as unfinished:
            nlp.to_disk(unfinished / MODEL)
            save_student(unfinished / STUDENT)
            arrays, counts = optimizer_to_arrays(optimizer, _models(nlp, hidden))
            save_file(arrays, unfinished / HEADS)
            for i, engine in enumerate(_engines(nlp)):
                (unfinished / ENCODERS.format(i)).write_bytes(engine.optimizer_to_bytes())
            if hidden is not None:
                (unfinished / PROJECTIONS).write_bytes(hidden.to_bytes())
            saved = {"step": step, "updates": counts, "unseen": _unseen_moves(nlp), "loop": state}
            (unfinished / STATE).write_text(json.dumps(saved), encoding="utf8")
            write_sums(unfinished)
        for checkpoint in older:
            if checkpoint != path:
                shutil.rmtree(checkpoint)
        return path

    def load(
        self, path: Path, nlp: Language, optimizer: Optimizer, hidden: HiddenStates | None
    ) -> tuple[int, dict[str, Any]]:
        """Load a checkpoint.

        optimizer: a new one, made from the config.
        RETURNS (step, state): the arguments of `save`.
        Raises DamagedError if a file is missing or has changed since it was saved, and DistilError
        if the system does not let it be read.
        """
        try:
            check_directory(path)
            return self._load(path, nlp, optimizer, hidden)
        except DamagedError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise _unreadable(path, cause) from error
            raise DamagedError(
                f"The checkpoint {path} is damaged: {error}. Delete it: the run then begins again."
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def _load(
        self, path: Path, nlp: Language, optimizer: Optimizer, hidden: HiddenStates | None
    ) -> tuple[int, dict[str, Any]]:
        nlp.from_disk(path / MODEL)
        saved = json.loads((path / STATE).read_text(encoding="utf8"))
        if hidden is not None:
            hidden.from_bytes((path / PROJECTIONS).read_bytes())
        arrays = load_file(path / HEADS)
        optimizer_from_arrays(optimizer, _models(nlp, hidden), arrays, saved["updates"])
        for i, engine in enumerate(_engines(nlp)):
            engine.optimizer_from_bytes((path / ENCODERS.format(i)).read_bytes())
        for name, moves in saved["unseen"].items():
            pipe: Any = nlp.get_pipe(name)
            pipe.model.attrs["unseen_classes"] = set(moves)
        return saved["step"], saved["loop"]

    def remove(self) -> None:
        """Delete the checkpoint."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _unreadable(path: Path, error: OSError) -> DistilError:
    # Without this, it would look like an error of writing into the output.
    return DistilError(
        f"The checkpoint {path} cannot be read: {error}. Make it readable, or delete it: the run "
        "then begins again."
    )


def optimizer_to_arrays(
    optimizer: Optimizer, models: Mapping[str, Model]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the state of thinc's optimizer under keys that are valid in another process.

    thinc's keys have the id of a node or shim, which depends on the order in which a process makes
    them. The keys here have the node's place in the walk through its model instead.

    models: by names that go into the keys.
    RETURNS (arrays, counts): moments and averages of each parameter, and its number of updates.
    """
    owners = list(_owners(models))
    arrays, counts = {}, {}
    for key, count in optimizer.nr_update.items():
        # A node and a shim may have the same number.
        for place, number, parameters, model in owners:
            if number == key[0] and (parameters is None or key[1] in parameters):
                name = f"{place}/{key[1]}"
                counts[name] = count
                for moment in _MOMENTS:
                    value = (getattr(optimizer, moment) or {}).get(key)
                    if value is not None:
                        arrays[f"{name}/{moment}"] = model.ops.to_numpy(value)
                break
    return arrays, counts


def optimizer_from_arrays(
    optimizer: Optimizer,
    models: Mapping[str, Model],
    arrays: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
) -> None:
    """Give a new optimizer the state that `optimizer_to_arrays` has returned."""
    owners = {place: (number, model) for place, number, _, model in _owners(models)}
    for name, count in counts.items():
        place, _, parameter = name.rpartition("/")
        number, model = owners[place]
        key = (number, parameter)
        optimizer.nr_update[key] = count
        for moment in _MOMENTS:
            value: Any = arrays.get(f"{name}/{moment}")
            if value is not None:
                getattr(optimizer, moment)[key] = model.ops.asarray(value)


def _owners(
    models: Mapping[str, Model],
) -> Iterator[tuple[str, int, Sequence[str] | None, Model]]:
    """Yield all nodes and shims that own parameters.

    RETURNS: name that is valid in another process, thinc's number, names of the parameters (None
        for a shim, which chooses its own), and the model that it is a part of.
    """
    for name, model in models.items():
        for i, node in enumerate(model.walk()):
            if node.param_names:
                yield f"{name}/{i}", node.id, node.param_names, model
        for i, node in enumerate(model.walk()):
            for j, shim in enumerate(node.shims):
                yield f"{name}/{i}/shim {j}", shim.id, None, model


def _unseen_moves(nlp: Language) -> dict[str, list[int]]:
    """List the moves that each parser has not seen in training. It does not save them itself."""
    return {
        name.removeprefix("pipe "): sorted(model.attrs["unseen_classes"])
        for name, model in _models(nlp, None).items()
        if "unseen_classes" in model.attrs
    }


def _models(nlp: Language, hidden: HiddenStates | None) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for name, pipe in nlp.pipeline:
        model = getattr(pipe, "model", None)
        if isinstance(model, Model):
            models[f"pipe {name}"] = model
    for i, projection in enumerate(hidden.projections if hidden is not None else []):
        models[f"projection {i}"] = projection
    return models


def _engines(nlp: Language) -> Iterator[TrainableEngine]:
    """Yield the engines of all encoders of a pipeline that learn."""
    for model in _models(nlp, None).values():
        for node in model.walk():
            for shim in node.shims:
                if isinstance(shim, EncoderShim) and shim.is_loaded and shim.is_trainable:
                    engine = shim.engine
                    if isinstance(engine, TrainableEngine):
                        yield engine
