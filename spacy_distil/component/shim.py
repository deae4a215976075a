"""The encoder inside a thinc model: docs to token vectors, with its weights and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import srsly
from spacy.tokens import Doc
from thinc.api import Model, Ops, Optimizer
from thinc.shims import Shim
from thinc.types import Floats2d

from spacy_distil.encoding import (
    POOLINGS,
    Batch,
    EncodedDocs,
    PieceTokenizer,
    encode_docs,
    make_batches,
    split_docs,
    to_ops,
)
from spacy_distil.encoding.pooling import PoolingName
from spacy_distil.engines import Backprop, Engine, StepSettings, TrainableEngine
from spacy_distil.engines.files import (
    CONFIG,
    MODELS,
    TOKENIZER,
    EngineName,
    check_engine,
    longest_window,
    parse_config,
    read_files,
    write_files,
)
from spacy_distil.engines.onnx import OnnxEngine
from spacy_distil.errors import ConfigError, OutOfMemoryError, WeightsError, require

if TYPE_CHECKING:
    from spacy_distil.engines.torch import TorchEngine


# The smallest values of settings that are numbers or null.
LEAST = {"window": 8, "overlap": 0, "max_batch_pieces": 1, "layer": 1, "threads": 1}
# What is an engine's own business.
ENGINE_SETTINGS: dict[EngineName, tuple[str, ...]] = {
    "torch": (
        "layer",
        "device",
        "mixed_precision",
        "dropout",
        "attention_dropout",
        "gradient_checkpointing",
    ),
    "onnx": ("threads",),
}


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of `spacy-distil.DistilTransformer.v1`, which documents them."""

    name: str
    engine: EngineName
    window: int | None
    overlap: int
    max_batch_pieces: int | None
    pooling: PoolingName
    layer: int | None
    mixed_precision: bool
    dropout: float | None
    attention_dropout: float | None
    gradient_checkpointing: bool
    device: str
    threads: int | None
    frozen: bool
    learn_rate_scale: float
    layer_decay: float

    def __post_init__(self) -> None:
        if self.engine not in MODELS:
            raise ConfigError(f"engine = {self.engine!r}: expected one of {', '.join(MODELS)}.")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling = {self.pooling!r}: expected one of {', '.join(POOLINGS)}.")
        for setting, least in LEAST.items():
            value = getattr(self, setting)
            if value is not None and value < least:
                raise ConfigError(f"{setting} = {value}: expected at least {least}.")
        if self.learn_rate_scale < 0:
            raise ConfigError(f"learn_rate_scale = {self.learn_rate_scale}: expected 0 or more.")
        for setting in ("dropout", "attention_dropout"):
            share = getattr(self, setting)
            if share is not None and not 0 <= share < 1:
                raise ConfigError(f"{setting} = {share}: expected null, or 0 to below 1.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay = {self.layer_decay}: expected above 0, at most 1.")

    @property
    def for_engine(self) -> dict[str, Any]:
        """The settings that are the engine's."""
        return {name: getattr(self, name) for name in ENGINE_SETTINGS[self.engine]}


@dataclass(frozen=True)
class LoadedEncoder:
    """What loading brings.

    window: most pieces in a window, special ones included.
    pad_id: the piece that fills up shorter windows of a batch.
    config: transformers' `config.json` of the encoder.
    """

    engine: Engine
    tokenizer: PieceTokenizer
    window: int
    pad_id: int
    config: Mapping[str, Any]

    @cached_property
    def pieces(self) -> np.ndarray:
        """What each piece looks like, by its id: (n_vocab,) str."""
        from tokenizers import Tokenizer

        vocab = Tokenizer.from_str(self.tokenizer.to_str()).get_vocab(with_added_tokens=True)
        # The encoder may have more than the tokenizer knows.
        n_vocab = max(self.config["vocab_size"], max(vocab.values(), default=-1) + 1)
        pieces = np.full(n_vocab, "", dtype=object)
        pieces[[*vocab.values()]] = [*vocab]
        return pieces


class EncoderShim(Shim):
    """Docs to token vectors through an engine.

    Empty until `load_pretrained`, `from_bytes` or `from_disk` fills it. Its weights are learned by
    the engine's own optimizer, which takes its learning rate, moments, weight decay and gradient
    clipping from thinc's at each step. Averages of the weights (thinc's `use_averages`) are kept
    for the heads alone.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(None)
        self.settings = settings
        self._loaded: LoadedEncoder | None = None
        self._has_gradients = False

    @property
    def loaded(self) -> LoadedEncoder:
        """Weights and tokenizer. Raises WeightsError where there are none yet."""
        if self._loaded is None:
            raise WeightsError(
                "The encoder has no weights yet. Call nlp.initialize(), which loads them from "
                f"name = {self.settings.name!r}, or load a saved pipeline."
            )
        return self._loaded

    @property
    def is_loaded(self) -> bool:
        """Whether there are weights."""
        return self._loaded is not None

    @property
    def engine(self) -> Engine:
        """What runs the encoder. Raises WeightsError where nothing is loaded."""
        return self.loaded.engine

    @property
    def width(self) -> int:
        """Width of the token vectors."""
        return self.engine.width

    @property
    def n_layers(self) -> int:
        """Number of layers, and that of the last hidden states."""
        return _count_layers(self.engine, self.loaded.config)

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return self.engine.n_parameters

    @property
    def max_batch_pieces(self) -> int:
        """Most padded pieces in one forward."""
        return self.settings.max_batch_pieces or self.engine.batch_pieces

    @property
    def is_trainable(self) -> bool:
        """Whether updates change the weights."""
        return not self.settings.frozen and self.settings.learn_rate_scale > 0

    # From docs to token vectors

    def predict_docs(
        self, docs: Sequence[Doc], ops: Ops, layers: Sequence[int] | None = None
    ) -> list[Floats2d]:
        """Token vectors of each doc, (n_tokens, width), each an array of its own; or those of
        several hidden states side by side, (n_tokens, len(layers) * width).

        layers: as `TrainableEngine.predict` takes them.
        """
        tokens = self.predict_packed(docs, ops, layers)
        return [part.copy() for part in split_docs(tokens, [len(doc) for doc in docs])]

    def predict_packed(
        self, docs: Sequence[Doc], ops: Ops, layers: Sequence[int] | None = None
    ) -> Floats2d:
        """The same in one array, (n_tokens of all docs, width for each of the layers)."""
        encoded = self._encode(docs)
        rows = self._alloc_rows(encoded, ops, layers)
        self._fill_rows(rows, self._batches(encoded), ops, layers)
        tokens, _ = encoded.pooling.forward(ops, rows)
        return tokens

    def predict_pieces(
        self, docs: Sequence[Doc], ops: Ops
    ) -> tuple[list[Floats2d], EncodedDocs, Floats2d]:
        """As `predict_docs`, together with what the token vectors are made of, by the same forward.

        RETURNS (tokvecs, encoded, states): states are the last hidden states of all pieces of all
            windows, special ones included, (n_pieces, width). A doc that has tokens, but no piece,
            has a window of special pieces alone.
        """
        encoded = self._encode(docs, blank_windows=True)
        tokenizer = self.loaded.tokenizer
        n_special = tokenizer.n_special
        n_rows = encoded.pooling.n_rows + n_special * len(encoded.windows)
        states = ops.alloc2f(n_rows, self.width)
        self._fill_rows(states, self._batches(encoded, special=True), ops)
        rows = states[to_ops(ops, encoded.places(len(tokenizer.prefix), n_special))]
        tokens, _ = encoded.pooling.forward(ops, rows)
        tokvecs = [part.copy() for part in split_docs(tokens, encoded.n_tokens)]
        return tokvecs, encoded, states

    def _fill_rows(
        self,
        rows: Floats2d,
        batches: Iterator[Batch],
        ops: Ops,
        layers: Sequence[int] | None = None,
    ) -> None:
        """Write hidden states into the rows of the batches."""
        predict = self.engine.predict
        if layers is not None:
            predict = partial(self._layered_engine(layers).predict, layers=layers)
        try:
            for batch in batches:
                rows[to_ops(ops, batch.rows)] = predict(batch, ops)
        except (OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"{error}\nSet max_batch_pieces below {self.max_batch_pieces:,} in the encoder's "
                "model, or window where a single one is too much."
            ) from error

    def begin_update_docs(
        self, docs: Sequence[Doc], ops: Ops
    ) -> tuple[list[Floats2d], Callable[[Floats2d], None]]:
        """As `begin_update_packed`, the token vectors doc by doc: views, (n_tokens, width)."""
        tokens, backprop = self.begin_update_packed(docs, ops)
        return split_docs(tokens, [len(doc) for doc in docs]), backprop

    def begin_update_packed(
        self, docs: Sequence[Doc], ops: Ops, layers: Sequence[int] | None = None
    ) -> tuple[Floats2d, Callable[[Floats2d], None]]:
        """As `predict_packed`, with a callback that takes the gradient of all token vectors, packed
        like them, and gathers that of the weights. Call it once. It takes the gradient of the first
        of the layers alone, too: see `engines.Backprop`.

        The graphs of all batches live until then.
        """
        engine = self.engine
        if not isinstance(engine, TrainableEngine):
            raise ConfigError(
                f"This encoder cannot be trained: engine = {self.settings.engine!r} is made for "
                "prediction. Train the pipeline that it was made from and run 'spacy distil "
                "quantize' again, or train the other pipes alone: add the encoder to [training] "
                "frozen_components and annotating_components, or set frozen = true in its model."
            )
        encoded = self._encode(docs)
        rows = self._alloc_rows(encoded, ops, layers)
        backprops: list[tuple[Any, Backprop]] = []
        with self._naming(docs, encoded):
            for batch in self._batches(encoded):
                index = to_ops(ops, batch.rows)
                rows[index], backprop = engine.begin_update(batch, ops, layers)
                backprops.append((index, backprop))

        def backprop_docs(d_tokens: Floats2d) -> None:
            with self._naming(docs, encoded):
                d_rows = backprop_pooling(d_tokens)
                try:
                    while backprops:
                        index, backprop = backprops.pop()
                        backprop(d_rows[index])
                        self._has_gradients = True
                except BaseException:
                    # What is there is the gradient of a part of the docs.
                    backprops.clear()
                    self._clear_gradients()
                    raise

        tokens, backprop_pooling = encoded.pooling.forward(ops, rows)
        return tokens, backprop_docs

    def finish_update(self, optimizer: Optimizer) -> None:
        """Apply the gathered gradients, if there are any, as `optimizer` is set at this step."""
        if not self._has_gradients:
            return
        if not hasattr(optimizer, "L2_is_weight_decay"):
            # nlp.rehearse comes with a function that collects gradients of thinc's own parameters.
            # It leaves encoders as they are, inside a pipe as well as in front of it.
            self._clear_gradients()
            return
        if optimizer.use_radam or optimizer.b1 <= 0 or not optimizer.L2_is_weight_decay:
            raise ConfigError(
                "distil_transformer trains with AdamW. Set [training.optimizer] to "
                '@optimizers = "Adam.v1" with L2_is_weight_decay = true.'
            )
        cast(TrainableEngine, self.engine).step(
            StepSettings(
                learn_rate=optimizer.learn_rate * self.settings.learn_rate_scale,
                layer_decay=self.settings.layer_decay,
                beta1=optimizer.b1,
                beta2=optimizer.b2,
                eps=optimizer.eps,
                weight_decay=optimizer.L2,
                grad_clip=optimizer.grad_clip,
            )
        )
        self._has_gradients = False

    def _clear_gradients(self) -> None:
        cast(TrainableEngine, self.engine).clear_gradients()
        self._has_gradients = False

    # Loading and saving

    def load_pretrained(self) -> None:
        """Load encoder and tokenizer by `name`: a directory, or, for the torch engine, a name on
        the hub.
        """
        if self.settings.engine == "onnx":
            self.from_disk(self.settings.name)
            return
        engine_class = _torch_engine()
        from spacy_distil.engines.pretrained import load_tokenizer

        name = self.settings.name
        engine = engine_class.from_name(name, **self.settings.for_engine)
        self._fill(engine, load_tokenizer(name), json.loads(engine.model.config.to_json_string()))

    def to_disk(self, path: str | Path) -> None:
        """Write the encoder's three files into a directory."""
        write_files(Path(path), self.to_files())

    def from_disk(self, path: str | Path) -> EncoderShim:
        """Read the encoder's three files from a directory."""
        try:
            return self.from_files(read_files(Path(path), self.settings.engine))
        except WeightsError as error:
            raise WeightsError(f"The encoder in {path} cannot be loaded. {error}") from error

    def to_bytes(self) -> bytes:
        return srsly.msgpack_dumps(self.to_files() if self.is_loaded else {})

    def from_bytes(self, data: bytes) -> EncoderShim:
        files = srsly.msgpack_loads(data)
        return self.from_files(files) if files else self

    def copy(self) -> EncoderShim:
        """An encoder of the same weights that learns on its own."""
        return EncoderShim(self.settings).from_bytes(self.to_bytes())

    def to_device(self, device_type: str, device_id: int) -> None:
        """thinc moves its own arrays only: the encoder's device is a setting of its own."""

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "data": self.to_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["settings"])  # type: ignore[misc]
        self.from_bytes(state["data"])

    def to_files(self) -> dict[str, bytes]:
        """What each file of the saved encoder holds, by name."""
        return {**self.engine.to_files(), TOKENIZER: self.loaded.tokenizer.to_str().encode("utf8")}

    def from_files(self, files: Mapping[str, bytes]) -> EncoderShim:
        """Load what `to_files` returned. Raises WeightsError where it cannot be used."""
        check_engine(files, self.settings.engine)
        config = parse_config(files)
        engine_class = OnnxEngine if self.settings.engine == "onnx" else _torch_engine()
        engine = engine_class.from_files(files, **self.settings.for_engine)
        tokenizer = PieceTokenizer.from_str(files[TOKENIZER])
        self._fill(engine, tokenizer, config)
        return self

    def _fill(self, engine: Engine, tokenizer: PieceTokenizer, config: dict[str, Any]) -> None:
        if tokenizer.vocab_size > config["vocab_size"]:
            raise WeightsError(
                f"The tokenizer has {tokenizer.vocab_size:,} pieces, the encoder embeddings for "
                f"{config['vocab_size']:,} only. They do not belong together."
            )
        longest = longest_window(config)
        window = self.settings.window or longest
        if window > longest:
            raise ConfigError(
                f"window = {window}: this encoder takes at most {longest} pieces at once. "
                f"Set window to {longest} or less; longer docs are split into windows."
            )
        if self.settings.overlap > (window - tokenizer.n_special) // 2:
            raise ConfigError(
                f"overlap = {self.settings.overlap}: expected at most half of the window of "
                f"{window} pieces less {tokenizer.n_special} special ones."
            )
        if self.settings.layer is not None:
            n_layers = _count_layers(engine, config)
            if n_layers != self.settings.layer:  # the torch engine has left out what is above
                raise ConfigError(
                    f"layer = {self.settings.layer}: the graph of this encoder ends with layer "
                    f"{n_layers}. Set layer to {n_layers} or null, or make another graph with "
                    "'spacy distil quantize', from a pipeline with this layer."
                )
        self._loaded = LoadedEncoder(
            engine,
            tokenizer,
            window,
            pad_id=config.get("pad_token_id") or 0,
            config=config,
        )
        self._has_gradients = False

    def _encode(self, docs: Sequence[Doc], *, blank_windows: bool = False) -> EncodedDocs:
        return encode_docs(
            docs,
            self.loaded.tokenizer,
            window=self.loaded.window,
            overlap=self.settings.overlap,
            pooling=self.settings.pooling,
            blank_windows=blank_windows,
        )

    def _alloc_rows(self, encoded: EncodedDocs, ops: Ops, layers: Sequence[int] | None) -> Floats2d:
        n_states = 1 if layers is None else len(layers)
        return ops.alloc2f(encoded.pooling.n_rows, n_states * self.width)

    def _layered_engine(self, layers: Sequence[int]) -> TrainableEngine:
        engine = self.engine
        if not isinstance(engine, TrainableEngine):
            raise ConfigError(
                f"layers = {list(layers)}: the hidden states of inner layers need engine = "
                f"'torch'. engine = {self.settings.engine!r} gives the last ones alone; take the "
                "pipeline that this one was made from by 'spacy distil quantize'."
            )
        return engine

    def _batches(self, encoded: EncodedDocs, *, special: bool = False) -> Iterator[Batch]:
        tokenizer = self.loaded.tokenizer
        return make_batches(
            encoded.windows,
            prefix=tokenizer.prefix,
            suffix=tokenizer.suffix,
            pad_id=self.loaded.pad_id,
            max_batch_pieces=self.max_batch_pieces,
            special=special,
        )

    @contextmanager
    def _naming(self, docs: Sequence[Doc], encoded: EncodedDocs) -> Iterator[None]:
        """Say which docs take more memory in training than there is, and what to do."""
        try:
            yield
        except (OutOfMemoryError, MemoryError) as error:
            longest = max(docs, key=len)
            lower = (
                ""
                if self.settings.gradient_checkpointing
                else ("gradient_checkpointing = true in the encoder's model, or ")
            )
            raise OutOfMemoryError(
                f"{error}\nThe batch has {len(docs):,} docs, {sum(map(len, docs)):,} tokens and "
                f"{encoded.pooling.n_rows:,} pieces; its longest doc has {len(longest):,} tokens "
                f"and begins with {longest.text[:60]!r}. Set {lower}a lower size in "
                "[training.batcher] and a higher accumulate_gradient in [training]; or a lower "
                f"max_batch_pieces (now {self.max_batch_pieces:,}) where a single forward is too "
                "much."
            ) from error


def _count_layers(engine: Engine, config: Mapping[str, Any]) -> int:
    if isinstance(engine, TrainableEngine):
        return engine.n_layers
    # DistilBERT has a name of its own for it.
    for name in ("n_layers", "num_hidden_layers"):
        if name in config:
            return int(config[name])
    raise WeightsError(
        f"{CONFIG} does not say how many layers this {config['model_type']} encoder has: "
        'neither "num_hidden_layers" nor "n_layers" is there. Add the first of them.'
    )


def get_encoder(model: Model) -> EncoderShim:
    """The encoder of a model that `spacy-distil.DistilTransformer.v1` made."""
    for shim in model.shims:
        if isinstance(shim, EncoderShim):
            return shim
    raise ConfigError(
        f"The model of a distil_transformer must be spacy-distil.DistilTransformer.v1, "
        f"not {model.name!r}."
    )


def _torch_engine() -> type[TorchEngine]:
    for module in ("torch", "transformers", "accelerate"):
        require(module, extra="train", purpose="An encoder that is not converted to ONNX")
    from spacy_distil.engines.torch import TorchEngine

    return TorchEngine
