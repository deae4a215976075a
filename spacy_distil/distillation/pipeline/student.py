"""The student pipeline before its first step: labels, encoder and heads from the teacher."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import srsly
from confection import Config
from spacy.language import Language
from spacy.training import Example
from thinc.api import Model

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.distillation.pipeline.heads import PipeSettings
from spacy_distil.distillation.pipeline.labels import (
    labels_for,
    output_names,
    shown,
    unknown_labels,
)
from spacy_distil.errors import ConfigError

# Labels


def save_labels(
    teacher: Language,
    config: Config,
    directory: Path,
    pipes: Mapping[str, PipeSettings],
) -> Config:
    """Let the student's pipes have the labels of the teacher's, in their order.

    They are written into files, as `spacy init labels` does, because a config cannot hold labels
    such as "$".

    config: the student's, not interpolated.
    directory: where the files go; made where it is missing.
    pipes: how pipes are taught. Those that learn from gold alone take their labels from there.
    RETURNS: the config, with [initialize.components.NAME.labels] for each such pipe that has none.
    """
    config = config.copy()
    for name, component in config["components"].items():
        teaching = pipes.get(name, PipeSettings())
        source = teaching.source(name)
        settings = config.get("initialize", {}).get("components", {}).get(name, {})
        if (
            "factory" not in component
            or teaching.target == "gold"
            or source not in teacher.pipe_names
            or settings.get("labels") is not None
        ):
            continue
        labels = labels_for(component["factory"], teacher, source)
        if labels is None:
            continue
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.json"
        srsly.write_json(path, labels)
        reader = {"@readers": "spacy.read_labels.v1", "path": str(path), "require": True}
        components = config.setdefault("initialize", {}).setdefault("components", {})
        components.setdefault(name, {})["labels"] = reader
    return config


def check_gold_labels(
    student: Language, examples: Iterable[Example], *, frozen: Collection[str] = ()
) -> None:
    """Raise ConfigError where the gold annotation has labels that a pipe of the student lacks.

    They would fail deep in a loss, or go unnoticed.

    student: initialized.
    examples: the training data.
    frozen: names of pipes that do not learn from it.
    """
    examples = list(examples)
    problems = []
    for name, pipe in student.pipeline:
        unknown, known = unknown_labels(pipe, examples)
        if unknown and name not in frozen:
            problems.append(
                f"{name!r}\n  only in the annotation: {shown(unknown)}\n"
                f"  of the pipe: {shown(known)}"
            )
    if problems:
        raise ConfigError(
            "The annotation of the training data has labels that pipes of the student do not have. "
            "Pipes that learn from the teacher know its labels.\n" + "\n".join(problems) + "\n"
            "Remove the labels from the data, train the teacher on data that has them, or let the "
            'pipe learn from gold alone: set target = "gold" in [distillation.pipes.NAME].'
        )


# The encoder


def can_start_from_teacher(teacher: Language, config: Config) -> str | None:
    """Why the student's encoder cannot be made of the teacher's layers; None where it can.

    config: the student's.
    """
    found = _encoders(teacher)
    if len(found) != 1:
        return f"the teacher has {len(found) or 'no'} components 'distil_transformer', expected one"
    if found[0].settings.engine != "torch":
        return (
            f"the teacher's encoder has engine = {found[0].settings.engine!r}, whose weights "
            "cannot be learned from; the pipeline that it was made from has what it takes"
        )
    names = _encoder_names(config)
    if len(names) != 1:
        return f"the student has {len(names) or 'no'} components 'distil_transformer', expected one"
    engine_name = config["components"][names[0]].get("model", {}).get("engine", "torch")
    if engine_name != "torch":
        return f"the student's encoder has engine = {engine_name!r}, which does not learn"
    from spacy_distil.students.families import FAMILIES

    engine: Any = found[0].engine
    model_type = engine.model.config.model_type
    if model_type not in FAMILIES:
        return (
            f"the teacher's encoder is of type {model_type!r}; "
            f"layers can be taken from: {', '.join(FAMILIES)}"
        )
    return None


def start_from_teacher(
    config: Config,
    teacher: Language,
    directory: Path,
    layers: Literal["first", "even"] | Sequence[int] = "first",
    n_layers: int | None = None,
) -> Config:
    """Make the student's encoder of layers of the trained teacher's.

    config: the student's, not interpolated. Its own settings of the encoder stay.
    directory: gets the encoder, as a Hugging Face model directory with its tokenizer.
    layers, n_layers: which, and how many; None is half of them. See `choose_layers`.
    RETURNS: the config, with the encoder's `name` set to the directory.
    """
    reason = can_start_from_teacher(teacher, config)
    if reason is not None:
        raise ConfigError(
            f"The student cannot start from the teacher's layers: {reason}. "
            'Set start = "config" in [distillation.student] to start from the encoder that the '
            "student's config names."
        )
    from spacy_distil.engines.pretrained import quiet_transformers
    from spacy_distil.students.layer_choice import choose_layers
    from spacy_distil.students.making import make_student
    from spacy_distil.students.teachers import load_teacher

    (source,) = _encoders(teacher)
    with TemporaryDirectory() as saved:
        source.to_disk(saved)
        encoder = load_teacher(saved)
        chosen = choose_layers(layers, n_layers, available=encoder.n_layers)
        with quiet_transformers():
            make_student(encoder, chosen).save_pretrained(directory)
            _save_tokenizer(source, encoder.tokenizer.special_tokens_map, directory)
    config = config.copy()
    component = config["components"][_encoder_names(config)[0]]
    component.setdefault("model", {})["name"] = str(directory)
    return config


def _save_tokenizer(
    encoder: EncoderShim, special_tokens: Mapping[str, str], directory: Path
) -> None:
    """Save a tokenizer as the encoder has it.

    By a family's own class, transformers would make it anew with that class's defaults, such as
    lower case.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(encoder.loaded.tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(directory)


def _encoders(nlp: Language) -> list[EncoderShim]:
    pipes: list[Any] = [pipe for _, pipe in nlp.pipeline]
    return [get_encoder(pipe.model) for pipe in pipes if isinstance(pipe, DistilTransformerPipe)]


def _encoder_names(config: Config) -> list[str]:
    """Names of the pipeline's components that are an encoder of ours, and are made anew."""
    return [
        name
        for name in config["nlp"]["pipeline"]
        if config["components"].get(name, {}).get("factory") == "distil_transformer"
    ]


# The heads


def copy_heads(student: Language, teacher: Language, pairs: Mapping[str, str]) -> dict[str, str]:
    """Copy the weights of the teacher's pipes into those of the student that fit.

    Pipes fit that are of the same kind, have the same outputs in the same order, and whose layers
    have the same names and shapes. The others stay as they were initialized. Layers of the
    encoder, which listeners stand for, are not the pipes' own.

    student, teacher: initialized.
    pairs: the teacher's name of a pipe, by the student's.
    RETURNS: for each pair "copied", or why it was not, the teacher's side first.
    """
    return {
        name: _copy_head(student.get_pipe(name), teacher.get_pipe(source))
        for name, source in pairs.items()
    }


def _copy_head(student: Any, teacher: Any) -> str:
    if type(student) is not type(teacher):
        return f"another kind of pipe: {type(teacher).__name__} and {type(student).__name__}"
    names, own_names = output_names(teacher), output_names(student)
    if names != own_names:
        same = sorted(map(str, names)) == sorted(map(str, own_names))
        return "the same labels in another order" if same else "other labels"
    layers, own_layers = _layers(teacher.model), _layers(student.model)
    difference = _difference(layers, own_layers)
    if difference is not None:
        return difference
    for layer, own in zip(layers, own_layers, strict=True):
        for name in own.param_names:
            if layer.has_param(name):
                weights: Any = own.ops.asarray(layer.get_param(name))
                own.set_param(name, weights.copy())
    if "unseen_classes" in teacher.model.attrs:
        # Moves that a parser has got after its training, and does not take yet.
        student.model.attrs["unseen_classes"] = set(teacher.model.attrs["unseen_classes"])
    return "copied"


def _layers(model: Model) -> list[Model]:
    """The layers of a model that have weights of thinc's, in a fixed order."""
    return [layer for layer in model.walk() if layer.param_names]


def _difference(teacher: Sequence[Model], student: Sequence[Model]) -> str | None:
    """In words, why the weights of some layers cannot be those of others; None where they can."""
    names, own_names = [each.name for each in teacher], [each.name for each in student]
    if names != own_names:
        return f"other layers: {', '.join(names)} and {', '.join(own_names)}"
    for layer, own in zip(teacher, student, strict=True):
        shapes, own_shapes = _shapes(layer), _shapes(own)
        if shapes == own_shapes:
            continue
        width, own_width = layer.maybe_get_dim("nI"), own.maybe_get_dim("nI")
        if width != own_width:
            return f"another width: {width} and {own_width}"
        return f"other shapes of {own.name!r}: {shapes} and {own_shapes}"
    return None


def _shapes(layer: Model) -> dict[str, tuple[int, ...] | None]:
    """The shape of each of a layer's weights; None for one that is not there yet."""
    return {
        name: layer.get_param(name).shape if layer.has_param(name) else None
        for name in layer.param_names
    }
