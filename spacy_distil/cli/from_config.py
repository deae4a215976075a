"""A user's own config of `spacy train`, with a `distil_transformer` in place of its encoder.

Encoders are spaCy's `tok2vec`, the `transformer` of spacy-transformers, and those that a pipe has
of its own. Listeners follow, learning rates are set, and everything else stays.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confection import ConfigValidationError
from spacy.util import load_config
from thinc.api import Config

from spacy_distil.cli.configs import (
    COMMAND,
    Optimize,
    default_encoder,
    fit_windows,
    schedule_options,
    schedule_settings,
    training_config,
)
from spacy_distil.cli.teacher_pipes import ENCODERS
from spacy_distil.encoding.pooling import POOLINGS
from spacy_distil.errors import ConfigError
from spacy_distil.pipelines import read_config

NAME = "transformer"
LISTENER = "spacy-distil.Listener."

# Beginnings of the names of architectures.
LISTENERS = ("spacy.Tok2VecListener.", "spacy-transformers.TransformerListener.")
# Encoders inside a pipe.
PRIVATE = (
    "spacy.Tok2Vec.",
    "spacy.HashEmbedCNN.",
    "spacy.HashEmbedBiLSTM.",
    "spacy-transformers.Tok2VecTransformer.",
)
UNKNOWN = ("spacy-curated-transformers.", "spacy-distil.", "spacy-transformers.")
NULL_SETTER = "spacy-transformers.null_annotation_setter.v1"

# Settings of spacy-transformers that have no counterpart here, by the value that loses nothing.
DROPPED: dict[str, Any] = {
    "tokenizer_config": {"use_fast": True},
    "transformer_config": {},
    "grad_scaler_config": {},
}
# Of a component's settings: the default of spacy-transformers.
MAX_BATCH_ITEMS = 4096
RATE = 0.001
HIGHEST_ENCODER_RATE = 5e-4


@dataclass
class Reader:
    """A block of a pipe that makes or reads token vectors.

    pipe: name of the pipe.
    parent, key: where the block is.
    listens: whether it reads the vectors of a component, or makes its own.
    """

    pipe: str
    parent: dict[str, Any]
    key: str
    listens: bool

    @property
    def block(self) -> dict[str, Any]:
        return self.parent[self.key]


@dataclass
class Swap:
    """The change of one config. `notes` says what became of settings that did not stay.

    values: the config as it was, with values in place of variables.
    """

    config: Config
    values: Config
    notes: list[str] = field(default_factory=list)

    def run(
        self, template: Config, *, encoder: str | None, default: str, schedule: dict[str, Any]
    ) -> None:
        """Swap the encoder.

        template: the config of `init-config train`, which has the new encoder and the optimizer.
        encoder: directory or hub name; None for the one that the config has, or `default`.
        schedule: settings that fit a corpus, see `configs.schedule_settings`; empty to keep the
            config's own.
        """
        old = self._find_encoder()
        readers = self._find_readers(old)
        self._keep_sourced_listeners(old)
        settings = self.config["components"].get(old, {}) if old else {}
        # Of transformers. A CNN has no name.
        blocks = [settings.get("model") or {}, *(reader.block for reader in readers)]
        names = list(dict.fromkeys(block["name"] for block in blocks if "name" in block))
        if len(names) > 1 and encoder is None:
            raise ConfigError(
                f"Pipes that share an encoder cannot have several: {', '.join(names)}. Choose one "
                "with --encoder"
            )
        encoder = encoder or (names[0] if names else default)
        # It may be a variable.
        probe = Config({**self.values, "probe": {"name": encoder}}).interpolate()
        new = template["components"][NAME]["model"]
        new |= fit_windows(probe["probe"]["name"], new["window"], new["overlap"])
        model = self._make_model(template, settings, readers)
        self._thaw(old, model)
        name = self._place(old, readers)
        paths = self.config.setdefault("paths", {})
        paths["encoder"] = encoder
        component = template["components"][NAME] | {"model": model}
        component["set_extra_annotations"] = self._annotation_setter(settings)
        components = {name: component}
        components |= {k: v for k, v in self.config["components"].items() if k != old}
        self.config["components"] = components
        self._drop_pretraining(old)
        self._set_rates(template, model, bool(names), schedule)
        self._check(old)

    # Encoders and listeners

    def _find_encoder(self) -> str | None:
        """Return the name of the encoder's component, if there is one that pipes share."""
        factories = {name: self._factory(name) for name in self.config["components"]}
        found = {name: factory for name, factory in factories.items() if factory in ENCODERS}
        for name, factory in found.items():
            if factory == "distil_transformer":
                raise ConfigError(f"{name!r} is a distil_transformer already. Set its name instead")
            if factory == "curated_transformer":
                raise ConfigError(
                    f"{name!r} is of spacy-curated-transformers, whose settings have no "
                    "counterpart. Write a new config with 'init-config train'"
                )
        if len(found) > 1:
            raise ConfigError(
                f"{' and '.join(map(repr, found))} are encoders. Only one can be swapped: let all "
                "pipes listen to one of them, and remove the other"
            )
        return next(iter(found), None)

    def _factory(self, name: str) -> str | None:
        """The factory of a component, also of one that comes from another pipeline."""
        settings = self.values["components"][name]
        if "source" in settings:
            settings = self._read_source(name)
        return settings.get("factory")

    def _read_source(self, name: str) -> dict[str, Any]:
        """The settings of a component in the pipeline that it comes from."""
        settings = self.values["components"][name]
        components = read_config(settings["source"])["components"]
        source = settings.get("component", name)
        if source not in components:
            raise ConfigError(
                f"{name!r}: {settings['source']} has no component {source!r}, only "
                f"{', '.join(components)}"
            )
        return components[source]

    def _find_readers(self, encoder: str | None) -> list[Reader]:
        """Find what gets a listener instead. Raises ConfigError if there is nothing."""
        readers = [
            reader
            for name, settings in self.config["components"].items()
            if name != encoder
            for reader in find_readers(name, settings)
        ]
        if not readers and encoder is None:
            pipes = ", ".join(self.config["components"]) or "none"
            raise ConfigError(
                "There is no encoder to swap: no component 'tok2vec' or 'transformer', and no pipe "
                f"with a tok2vec of its own. The components are: {pipes}"
            )
        return readers

    def _keep_sourced_listeners(self, encoder: str | None) -> None:
        """Let pipes from other pipelines keep the encoder that they were trained on."""
        for name, settings in self.config["components"].items():
            if "source" not in settings or name == encoder or settings.get("replace_listeners"):
                continue
            trained = self._read_source(name)
            paths = [path for path, block in find_blocks(trained) if is_one_of(block, LISTENERS)]
            if paths:
                settings["replace_listeners"] = [".".join(path) for path in paths]
                self.notes.append(
                    f"{name!r} is from {settings['source']}, and its weights fit the encoder there:"
                    " it keeps a copy of that encoder (replace_listeners). To train it on the new "
                    "encoder, give its factory in place of source"
                )

    def _make_model(
        self, template: Config, settings: Mapping[str, Any], readers: list[Reader]
    ) -> dict[str, Any]:
        """The model of the new encoder. The readers become listeners.

        settings: of the old encoder's component; empty if there is none.
        """
        model = dict(template["components"][NAME]["model"])
        listener = next(
            block
            for each in template["components"].values()
            for _, block in find_blocks(each)
            if is_one_of(block, (LISTENER,))
        )
        # Of transformers, the shared one or those inside pipes.
        olds = [settings.get("model") or {}, *(reader.block for reader in readers)]
        # Only readers of transformers pool.
        pooling = {
            reader.pipe: reader.block["pooling"] for reader in readers if "pooling" in reader.block
        }
        kinds = {pipe: pooling_name(block) for pipe, block in pooling.items()}
        if len(set(kinds.values())) > 1 or None in kinds.values():
            described = ", ".join(f"{p!r} {b.get('@layers')!r}" for p, b in pooling.items())
            raise ConfigError(
                f"Pipes that share an encoder have one pooling, of {', '.join(POOLINGS)}; here are "
                f"{described}. Give all listeners the same pooling"
            )
        model["pooling"] = next(iter(kinds.values()), "mean")
        for old in olds:
            model["mixed_precision"] = old.get("mixed_precision", model["mixed_precision"])
        factors = {reader.pipe: reader.block.get("grad_factor", 1.0) for reader in readers}
        if factors and not any(factors.values()):
            model["frozen"] = True
            self.notes.append("no pipe trained the encoder (grad_factor = 0): it has frozen = true")
        elif dropped := [repr(pipe) for pipe, factor in factors.items() if factor != 1]:
            self.notes.append(
                f"grad_factor of {', '.join(dropped)} has no counterpart: the gradient of each "
                "pipe counts in full"
            )
        self._note_dropped(settings, olds, model)
        if any("'include_static_vectors': True" in str(old) for old in olds):
            self.notes.append(
                "the encoder reads no static vectors. [initialize] vectors stays, for "
                "doc.similarity: set it to null if nothing else needs it"
            )
        for reader in readers:
            if not reader.listens:
                self.notes.append(f"{reader.pipe!r} had an encoder of its own, and listens now")
            reader.parent[reader.key] = dict(listener)
        return model

    def _note_dropped(
        self, settings: Mapping[str, Any], olds: Sequence[Mapping[str, Any]], new: Mapping[str, Any]
    ) -> None:
        """Note the settings of transformers that do not stay.

        settings: see `_make_model`. olds: blocks of transformers and of other encoders.
        new: model of the new encoder.
        """
        notes = [
            f"{key} of the transformer has no counterpart: {old[key]}"
            for old in olds
            for key, default in DROPPED.items()
            if old.get(key, default) not in (default, {}, None)
        ]
        window, overlap, batch = (
            f"{key} = {json.dumps(new[key])}" for key in ("window", "overlap", "max_batch_pieces")
        )
        for old in olds:
            if spans := old.get("get_spans"):
                described = ", ".join(f"{key} = {value}" for key, value in spans.items())
                notes.append(
                    f"get_spans ({described}), in tokens, gives way to {window}, {overlap}, in "
                    "pieces"
                )
        items = settings.get("max_batch_items", MAX_BATCH_ITEMS)
        if items != MAX_BATCH_ITEMS:
            notes.append(f"max_batch_items = {items} gives way to {batch}")
        self.notes += dict.fromkeys(notes)

    def _annotation_setter(self, settings: Mapping[str, Any]) -> Any:
        if settings.get("factory") != "transformer":
            return None
        setter = settings.get("set_extra_annotations")
        if setter and setter.get("@annotation_setters") != NULL_SETTER:
            return setter
        self.notes.append(
            "doc._.trf_data is not set. Code that reads it needs set_extra_annotations = "
            '{"@annotation_setters":"spacy-distil.TrfData.v1"}'
        )
        return None

    # The pipeline

    def _thaw(self, old: str | None, model: dict[str, Any]) -> None:
        """Freeze the new encoder by its model. spaCy does not initialize frozen components, so this
        one would have no weights.
        """
        frozen = self.config.get("training", {}).get("frozen_components") or []
        if old in frozen:
            frozen.remove(old)
            model["frozen"] = True
            self.notes.append(
                f"{old!r} has frozen = true in its model instead of frozen_components: set it to "
                "false, to train the new encoder"
            )

    def _place(self, old: str | None, readers: list[Reader]) -> str:
        """Put the new encoder into the lists of pipes, before all that listen.

        RETURNS: its name.
        """
        name = NAME if old is None or old == "tok2vec" else old
        if name != old and name in self.config["components"]:
            raise ConfigError(f"{name!r} is the name of another component. Rename that one")
        for section, key in (
            ("nlp", "pipeline"),
            ("nlp", "disabled"),
            ("training", "frozen_components"),
            ("training", "annotating_components"),
        ):
            names = self.config.get(section, {}).get(key, [])
            if not isinstance(names, list):
                raise ConfigError(
                    f"[{section}] {key} = {names!r}: expected a list. Write the names in its place"
                )
            names[:] = [name if each == old else each for each in names]
        pipeline = self.config["nlp"]["pipeline"]
        listening = {reader.pipe for reader in readers}
        first = next((i for i, each in enumerate(pipeline) if each in listening), 0)
        if name not in pipeline:
            pipeline.insert(0, name)
        elif pipeline.index(name) > first:
            pipeline.remove(name)
            pipeline.insert(first, name)
            self.notes.append(f"{name!r} comes before {pipeline[first + 1]!r}, which listens to it")
        if old is not None and name != old:
            self.notes.append(f"{old!r} is called {name!r}")
        return name

    def _drop_pretraining(self, old: str | None) -> None:
        """Remove what belongs to the weights of the old encoder."""
        initialize = self.config.get("initialize", {})
        initialize.get("components", {}).pop(old, None)
        if self._interpolate(old).get("initialize", {}).get("init_tok2vec"):
            initialize["init_tok2vec"] = None
            self.notes.append("[initialize] init_tok2vec has weights of another encoder: it is off")
        if self.config.get("pretraining"):
            self.config["pretraining"] = {}
            self.notes.append("[pretraining] is for the old encoder, and empty now")

    # Training

    def _set_rates(
        self,
        template: Config,
        model: dict[str, Any],
        is_transformer: bool,
        schedule: dict[str, Any],
    ) -> None:
        """Set the learning rates, with a warm-up, and with a schedule everything that it says.

        is_transformer: whether the old encoder was one. Then its rate stays.
        """
        training = self.config.setdefault("training", {})
        if schedule:
            batcher = template["training"]["batcher"] | {"size": schedule["words"]}
            training.update(max_steps=schedule["steps"], max_epochs=0, patience=0, batcher=batcher)
            training["eval_frequency"] = schedule["eval_frequency"]
            self.config["paths"]["train"] = schedule["train_path"]
            self.notes.append("[training] fits the corpus: batches, steps, evaluations, patience")
        steps = training.setdefault("max_steps", 20_000)
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError(
                f"training.max_steps = {steps!r}: the learning rate falls to 0 at the last step. "
                "Set a number of steps, or name the training corpus with --corpus"
            )
        if training.get("batcher", {}).get("discard_oversize"):
            self.notes.append(
                "[training.batcher] discard_oversize = true silently drops long documents: set it "
                "to false"
            )
        optimizer = training.get("optimizer", {})
        rate = optimizer.get("learn_rate", RATE)
        old = dict(rate) if isinstance(rate, dict) else {"initial_rate": rate}
        if optimizer.get("@optimizers", "Adam.v1") != "Adam.v1":
            self.notes.append(
                f"{optimizer['@optimizers']!r} gives way to Adam.v1: the encoder learns with AdamW"
            )
            optimizer = {}
        peak = old.get("initial_rate")
        if not isinstance(peak, (int, float)):
            peak = None
        warmup = old.get("warmup_steps")
        if schedule:
            warmup = schedule["warmup"]
        elif not isinstance(warmup, int) or not 0 < warmup <= steps // 2:
            warmup = max(1, min(100, steps // 10))
        pipes = RATE
        if is_transformer and peak is not None and 0 < peak <= HIGHEST_ENCODER_RATE:
            model["learn_rate_scale"] = round(peak / RATE, 6)
        elif not is_transformer and peak:
            pipes = peak
        training["optimizer"] = {
            **template["training"]["optimizer"],
            **optimizer,
            "L2_is_weight_decay": True,
            "learn_rate": {
                "@schedules": "warmup_linear.v1",
                "warmup_steps": warmup,
                "total_steps": "${training.max_steps}",
                "initial_rate": pipes,
            },
        }
        self.notes.append(
            f"the pipes learn at {pipes:g} at most, the encoder at {model['learn_rate_scale']:g} "
            f"times that; both rise for {warmup:,} of {steps:,} steps, and fall to 0 at the last"
        )
        if training.get("patience"):
            self.notes.append(
                f"patience = {training['patience']} may end the run before the rate has fallen: "
                "set it to 0 and max_steps as needed, or name the training corpus with --corpus"
            )

    def _check(self, old: str | None) -> None:
        """Raise ConfigError if something still refers to a removed section."""
        for name, settings in self._interpolate(old)["components"].items():
            for path, block in find_blocks(settings):
                if is_one_of(block, UNKNOWN) and not is_one_of(block, ("spacy-distil.",)):
                    raise ConfigError(
                        f"[components.{'.'.join([name, *path])}] has the architecture "
                        f"{block['@architectures']!r}, which reads more than token vectors. Give "
                        "the pipe another architecture"
                    )

    def _interpolate(self, old: str | None) -> Config:
        """Replace variables by their values."""
        try:
            return self.config.interpolate()
        except ConfigValidationError as error:
            raise ConfigError(
                f"A variable refers to a setting of {old!r} that is gone. Replace the variable by "
                f"its value: {' '.join(str(error).split())}"
            ) from error


def swapped_config(
    path: Path,
    *,
    encoder: str | None = None,
    optimize: Optimize = "efficiency",
    gpu: bool | None = None,
    corpus: Path | None = None,
) -> tuple[str, list[str]]:
    """Write a config of `spacy train` with a `distil_transformer` in place of its encoder.

    encoder, optimize, corpus: as in `configs.training_config`. The encoder of a transformer's
        config stays unless another one is given.
    gpu: whether the pipeline is trained on a GPU; None to read it from the config.
    RETURNS: the config as text, and notes about settings that did not stay.
    Raises ConfigError if the config has what cannot be swapped.
    """
    config, values = _load(path)
    if gpu is None:
        gpu = bool(values.get("system", {}).get("gpu_allocator"))
    options = ["--from", str(path), *(["--encoder", encoder] if encoder else [])]
    options += ["--optimize", optimize, *schedule_options(gpu, corpus)]
    # Its language and pipes are not used.
    text = training_config(lang="xx", encoder=encoder, optimize=optimize, gpu=gpu)
    template = Config().from_str(text, interpolate=False)
    swap = Swap(config, values)
    try:
        swap.run(
            template,
            encoder=encoder,
            default=default_encoder(values["nlp"]["lang"], optimize),
            schedule=schedule_settings(gpu, corpus) if corpus else {},
        )
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be taken over. {error}.") from error
    header = [f"The config {path} with a transformer:", *(f"- {note}." for note in swap.notes)]
    header += [f"Written by: {shlex.join([*COMMAND, 'train', *options])}"]
    return "".join(f"# {line}\n" for line in header) + f"\n{to_text(config)}\n", swap.notes


def to_text(config: Config) -> str:
    """Write a config with each section before those inside it, in the order of the config."""
    blocks = re.split(r"\n\n(?=\[)", config.to_str(interpolate=False))
    paths = [tuple(block[1 : block.index("]")].split(".")) for block in blocks]
    order: dict[tuple[str, ...], int] = {}
    for path in paths:
        for end in range(1, len(path) + 1):
            order.setdefault(path[:end], len(order))

    def place(path: tuple[str, ...]) -> list[int]:
        return [order[path[:end]] for end in range(1, len(path) + 1)]

    return "\n\n".join(block for _, block in sorted(zip(map(place, paths), blocks, strict=True)))


def _load(path: Path) -> tuple[Config, Config]:
    """Read a config. RETURNS: it, and a copy with values in place of variables."""
    try:
        config = load_config(path, interpolate=False)
        values = config.interpolate()
    except (OSError, ConfigValidationError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    missing = [key for key in ("nlp", "components") if not config.get(key)]
    if missing or "pipeline" not in config["nlp"] or "lang" not in config["nlp"]:
        raise ConfigError(
            f"{path} is no config of a pipeline: expected [nlp] with lang and pipeline, and "
            "[components]"
        )
    return config, values


def find_blocks(
    settings: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Find the architectures in the settings of a component. RETURNS: path and block of each."""
    for key, value in settings.items():
        if isinstance(value, dict):
            if "@architectures" in value:
                yield (*path, key), value
            yield from find_blocks(value, (*path, key))


def find_readers(name: str, settings: dict[str, Any]) -> Iterator[Reader]:
    """Find the listeners and the encoders inside a pipe, the outermost only."""

    def walk(parent: dict[str, Any], *, is_top: bool) -> Iterator[Reader]:
        for key, value in parent.items():
            if not isinstance(value, dict):
                continue
            if is_one_of(value, LISTENERS):
                yield Reader(name, parent, key, listens=True)
            elif is_one_of(value, PRIVATE) and not is_top:
                yield Reader(name, parent, key, listens=False)
            else:
                yield from walk(value, is_top=False)

    # A component whose whole model is an encoder is no pipe that could listen.
    yield from walk(settings, is_top=True)


def is_one_of(block: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return str(block.get("@architectures", "")).startswith(names)


def pooling_name(block: Mapping[str, Any]) -> str | None:
    """Our name of a layer that pools, such as {"@layers": "reduce_mean.v1"}."""
    name = str(block.get("@layers")).removeprefix("reduce_").split(".")[0]
    return name if name in POOLINGS else None
