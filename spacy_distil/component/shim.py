"""The encoder inside a thinc model: turns docs into token vectors, learns, loads and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import srsly
from spacy.tokens import Doc
from thinc.api import Model, Ops, Optimizer
from thinc.shims import Shim
from thinc.types import Floats2d

from spacy_distil.component.loading import LoadedEncoder, load_by_name, load_files
from spacy_distil.component.settings import EncoderSettings
from spacy_distil.encoding import (
    Batch,
    DocText,
    EncodedDocs,
    EncodedPairs,
    RaggedBatch,
    Text,
    encode_docs,
    encode_pairs,
    make_batches,
    make_ragged_batches,
    split_docs,
    to_ops,
)
from spacy_distil.engines import Backprop, Engine, StepSettings, TokenEngine, TrainableEngine
from spacy_distil.engines.files import join_parts, read_files, write_files
from spacy_distil.errors import ConfigError, OutOfMemoryError, WeightsError
from spacy_distil.runs.digests import Content, Parts, add_sums, as_parts, check_sums

# The most bytes in a value of msgpack.
_LONGEST = (1 << 32) - 1


class EncoderShim(Shim):
    """Turns docs into token vectors with an engine.

    It is empty until `load_pretrained`, `from_bytes` or `from_disk` fills it. The engine's own
    optimizer updates the weights. It takes learning rate, moments, weight decay and gradient
    clipping from thinc's optimizer at each step. Averages of the weights (thinc's `use_averages`)
    exist for the heads only.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(None)
        self.settings = settings
        self._loaded: LoadedEncoder | None = None
        self._token_engine: TokenEngine | None = None
        self._has_gradients = False

    @property
    def loaded(self) -> LoadedEncoder:
        """Weights and tokenizer. Raises WeightsError if they are not loaded yet."""
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
        """The engine that runs the encoder. Raises WeightsError if nothing is loaded."""
        return self.loaded.engine

    @property
    def width(self) -> int:
        """Width of the token vectors."""
        return self.engine.width

    @property
    def n_layers(self) -> int:
        """Number of layers, which is also the number of the last hidden states."""
        return self.loaded.n_layers

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return self.engine.n_parameters

    @property
    def max_batch_pieces(self) -> int:
        """Most pieces in one forward pass, padded ones where the engine pads."""
        return self.settings.max_batch_pieces or self.engine.batch_pieces

    @property
    def has_docs(self) -> bool:
        """Whether docs have a vector of their own, after the ones of their tokens."""
        return self.settings.doc_pooling is not None

    def count_vectors(self, docs: Sequence[Doc | DocText], *, with_docs: bool = True) -> list[int]:
        """Count the vectors of each doc: one for each token, and the one of the doc, if any."""
        return [len(doc) + (with_docs and self.has_docs) for doc in docs]

    @property
    def is_trainable(self) -> bool:
        """Whether updates change the weights."""
        return not self.settings.frozen and self.settings.learn_rate_scale > 0

    # Prediction

    def predict_docs(
        self,
        docs: Sequence[Doc | DocText],
        ops: Ops,
        layers: Sequence[int] | None = None,
        *,
        with_docs: bool = False,
    ) -> list[Floats2d]:
        """Compute the token vectors of each doc.

        layers: numbers of hidden states, as `TrainableEngine.predict` takes them.
        with_docs: whether the vector of the doc follows, if there is a `doc_pooling`.
        RETURNS: an array of its own for each doc, (n_vectors, width), or with `layers`
            (n_vectors, len(layers) * width). See `count_vectors`.
        """
        if self._token_engine is None or layers is not None:
            tokens = self.predict_packed(docs, ops, layers, with_docs=with_docs)
            sizes = self.count_vectors(docs, with_docs=with_docs)
            return [part.copy() for part in split_docs(tokens, sizes)]
        encoded = self._encode(docs, with_docs=with_docs)
        with self._explain_memory_in_prediction():
            return self._token_engine.predict_tokens(
                self._ragged_batches(encoded), encoded.pooling, encoded.n_vectors, ops
            )

    def predict_packed(
        self,
        docs: Sequence[Doc | DocText],
        ops: Ops,
        layers: Sequence[int] | None = None,
        *,
        with_docs: bool = False,
    ) -> Floats2d:
        """Compute the token vectors of all docs in one array.

        layers, with_docs: as in `predict_docs`.
        RETURNS: (n_vectors of all docs, width for each of the layers).
        """
        encoded = self._encode(docs, with_docs=with_docs)
        rows = self._alloc_rows(encoded, ops, layers)
        self._fill_rows(rows, self._batches(encoded), ops, layers)
        tokens, _ = encoded.pooling.forward(ops, rows)
        return tokens

    def predict_pieces(
        self, docs: Sequence[Doc | DocText], ops: Ops, *, with_docs: bool = False
    ) -> tuple[list[Floats2d], EncodedDocs, Floats2d]:
        """Compute the token vectors of each doc, and return the piece vectors they are made of.

        with_docs: as in `predict_docs`.
        RETURNS (tokvecs, encoded, states): tokvecs as in `predict_docs`; states are the last
            hidden states of all pieces of all windows, special ones included, (n_pieces, width). A
            doc that has tokens but no pieces has one window of special pieces.
        """
        encoded = self._encode(docs, with_docs=with_docs, blank_windows=True)
        tokenizer = self.loaded.tokenizer
        n_special = tokenizer.n_special
        n_rows = len(encoded.row_pieces) + n_special * len(encoded.windows)
        states = ops.alloc2f(n_rows, self.width)
        self._fill_rows(states, self._batches(encoded, special=True), ops)
        rows = states
        if not encoded.special:
            rows = states[to_ops(ops, encoded.places(len(tokenizer.prefix), n_special))]
        tokens, _ = encoded.pooling.forward(ops, rows)
        tokvecs = [part.copy() for part in split_docs(tokens, encoded.n_vectors)]
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
        with self._explain_memory_in_prediction():
            for batch in batches:
                rows[to_ops(ops, batch.rows)] = predict(batch, ops)

    @contextmanager
    def _explain_memory_in_prediction(self) -> Iterator[None]:
        """Raise OutOfMemoryError, which names the settings, if memory runs out in prediction."""
        try:
            yield
        except (OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"{error}\nSet max_batch_pieces below {self.max_batch_pieces:,} in the encoder's "
                "model, or a lower window if a single window is too much."
            ) from error

    # Training

    def begin_update_docs(
        self, docs: Sequence[Doc | DocText], ops: Ops, *, with_docs: bool = False
    ) -> tuple[list[Floats2d], Callable[[Floats2d], None]]:
        """Do the same as `begin_update_packed`, and split the vectors into a view per doc."""
        vectors, backprop = self.begin_update_packed(docs, ops, with_docs=with_docs)
        return split_docs(vectors, self.count_vectors(docs, with_docs=with_docs)), backprop

    def begin_update_packed(
        self,
        docs: Sequence[Doc | DocText],
        ops: Ops,
        layers: Sequence[int] | None = None,
        *,
        with_docs: bool = False,
    ) -> tuple[Floats2d, Callable[[Floats2d], None]]:
        """Compute the token vectors of all docs, and keep the graphs of all batches for the
        backward pass.

        layers, with_docs: as in `predict_docs`.
        RETURNS (tokens, backprop): tokens as in `predict_packed`. The callback takes their
            gradient, and gathers the gradient of the weights. Call it once. It also accepts the
            gradient of the first layer's columns only, see `engines.Backprop`.
        """
        self._check_trainable()
        encoded = self._encode(docs, with_docs=with_docs)
        rows = self._alloc_rows(encoded, ops, layers)
        with self._explain_memory_in_update(docs, len(encoded.row_pieces)):
            backprop_rows = self._begin_rows(rows, self._batches(encoded), ops, layers)
            tokens, backprop_pooling = encoded.pooling.forward(ops, rows)

        def backprop_docs(d_tokens: Floats2d) -> None:
            with self._explain_memory_in_update(docs, len(encoded.row_pieces)):
                backprop_rows(backprop_pooling(d_tokens))

        return tokens, backprop_docs

    def _begin_rows(
        self,
        rows: Floats2d,
        batches: Iterator[Batch],
        ops: Ops,
        layers: Sequence[int] | None = None,
    ) -> Callable[[Floats2d], None]:
        """Write hidden states into the rows of the batches, and keep all graphs.

        RETURNS: a callback that takes the gradient of the rows. Call it once.
        """
        engine = cast(TrainableEngine, self.engine)
        backprops: list[tuple[Any, Backprop]] = []
        for batch in batches:
            index = to_ops(ops, batch.rows)
            rows[index], backprop = engine.begin_update(batch, ops, layers)
            backprops.append((index, backprop))

        def backprop_rows(d_rows: Floats2d) -> None:
            try:
                while backprops:
                    index, backprop = backprops.pop()
                    backprop(d_rows[index])
                    self._has_gradients = True
            except BaseException:
                # The gradients so far come from some of the windows only.
                backprops.clear()
                self._clear_gradients()
                raise

        return backprop_rows

    def _check_trainable(self) -> None:
        if not isinstance(self.engine, TrainableEngine):
            raise ConfigError(
                f"This encoder cannot be trained: engine = {self.settings.engine!r} only predicts. "
                "Train the original pipeline and run 'spacy distil quantize' again, or train only "
                "the other pipes: add the encoder to [training] frozen_components and "
                "annotating_components, or set frozen = true in its model."
            )

    def finish_update(self, optimizer: Optimizer) -> None:
        """Apply the gathered gradients, if any, with the current settings of `optimizer`."""
        if not self._has_gradients:
            return
        if not hasattr(optimizer, "L2_is_weight_decay"):
            # nlp.rehearse passes a function that collects gradients of thinc's own parameters.
            # Rehearsal does not change encoders, inside a pipe or shared.
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

    @contextmanager
    def _explain_memory_in_update(
        self, docs: Sequence[Doc | DocText], n_pieces: int
    ) -> Iterator[None]:
        """Raise OutOfMemoryError, which names the docs and the settings, if memory runs out."""
        try:
            yield
        except (OutOfMemoryError, MemoryError) as error:
            longest = max(docs, key=len)
            checkpointing = (
                ""
                if self.settings.gradient_checkpointing
                else "gradient_checkpointing = true in the encoder's model, or "
            )
            raise OutOfMemoryError(
                f"{error}\nThe batch has {len(docs):,} docs, {sum(map(len, docs)):,} tokens and "
                f"{n_pieces:,} pieces; its longest doc has {len(longest):,} tokens "
                f"and begins with {longest.text[:60]!r}. Set {checkpointing}a lower size in "
                "[training.batcher] and a higher accumulate_gradient in [training]; or a lower "
                f"max_batch_pieces (now {self.max_batch_pieces:,}) if a single forward pass is too "
                "much."
            ) from error

    # Pairs of texts

    def encode_pairs(self, pairs: Sequence[tuple[Text, Text]]) -> EncodedPairs:
        """Cut pairs of texts into windows of pieces.

        Raises ConfigError if the encoder tells two texts apart by token types, and its graph was
        made without.
        """
        self._check_token_types()
        return encode_pairs(
            pairs,
            self.loaded.tokenizer,
            window=self.loaded.window,
            overlap=self.settings.overlap,
            pieces_from=self.settings.pieces_from,
        )

    def predict_pairs(self, encoded: EncodedPairs, ops: Ops) -> Floats2d:
        """Compute the hidden states of all pieces of all windows, (n_rows, width)."""
        rows = ops.alloc2f(encoded.n_rows, self.width)
        self._fill_rows(rows, self._pair_batches(encoded), ops)
        return rows

    def begin_update_pairs(
        self, encoded: EncodedPairs, texts: Sequence[DocText], ops: Ops
    ) -> tuple[Floats2d, Callable[[Floats2d], None]]:
        """Do the same as `predict_pairs`, and keep the graphs for the backward pass.

        texts: of the pairs, for errors.
        RETURNS (rows, backprop): the callback takes their gradient, and gathers the gradient of the
            weights. Call it once.
        """
        self._check_trainable()
        rows = ops.alloc2f(encoded.n_rows, self.width)
        with self._explain_memory_in_update(texts, encoded.n_rows):
            backprop_rows = self._begin_rows(rows, self._pair_batches(encoded), ops)

        def backprop(d_rows: Floats2d) -> None:
            with self._explain_memory_in_update(texts, encoded.n_rows):
                backprop_rows(d_rows)

        return rows, backprop

    def _pair_batches(self, encoded: EncodedPairs) -> Iterator[Batch]:
        return make_batches(
            encoded.windows,
            prefix=(),
            suffix=(),
            pad_id=self.loaded.pad_id,
            max_batch_pieces=self.max_batch_pieces,
            length_multiple=self.engine.length_multiple,
            max_length=self.loaded.window,
            seconds=encoded.seconds,
        )

    def _check_token_types(self) -> None:
        n_types = self.loaded.config.get("type_vocab_size") or 1
        if self.engine.n_token_types < min(n_types, 2):
            raise ConfigError(
                "The graph of this encoder has no types of tokens, by which it tells two texts "
                "apart: it was made when no pipe of the pipeline read pairs of texts. Run 'spacy "
                "distil quantize' again, on the pipeline with the pipe."
            )

    # Loading and saving

    def load_pretrained(self) -> None:
        """Load encoder and tokenizer by the setting `name`: a directory, or, for the torch engine,
        a name on the hub.
        """
        if self.settings.engine == "onnx":
            self.from_disk(self.settings.name)
        else:
            self._fill(load_by_name(self.settings))

    def to_disk(self, path: str | Path) -> None:
        """Write the encoder's three files and their digests into a directory."""
        write_files(Path(path), self.loaded.to_parts())

    def from_disk(self, path: str | Path) -> EncoderShim:
        """Read the encoder's three files from a directory."""
        try:
            return self.from_files(read_files(Path(path), self.settings.engine))
        except WeightsError as error:
            raise WeightsError(f"The encoder in {path} cannot be loaded. {error}") from error

    def to_bytes(self) -> bytes:
        """Serialize the encoder's three files and their digests; an encoder without weights as
        none.
        """
        return _pack(add_sums(self.loaded.to_parts()) if self.is_loaded else {})

    def from_bytes(self, data: bytes) -> EncoderShim:
        """Load what `to_bytes` returned. Raises WeightsError if it has changed since."""
        files = _unpack(data)
        return self.from_files(files) if files else self

    def to_files(self) -> dict[str, bytes]:
        """Return the content of each file of the saved encoder, by name."""
        return join_parts(self.loaded.to_parts())

    def from_files(self, files: Mapping[str, Content]) -> EncoderShim:
        """Load what `to_files` returned. Raises WeightsError if it cannot be used."""
        self._fill(load_files(files, self.settings))
        return self

    def copy(self) -> EncoderShim:
        """Copy the encoder. The copy has weights of its own."""
        copied = EncoderShim(self.settings)
        return copied.from_files(self.to_files()) if self.is_loaded else copied

    def to_device(self, device_type: str, device_id: int) -> None:
        """Do nothing: the encoder's device is a setting. thinc moves only its own arrays."""

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "data": self.to_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["settings"])  # type: ignore[misc]
        self.from_bytes(state["data"])

    def _fill(self, loaded: LoadedEncoder) -> None:
        self._loaded = loaded
        # Checking the type takes microseconds, which count for a single doc.
        self._token_engine = loaded.engine if isinstance(loaded.engine, TokenEngine) else None
        self._has_gradients = False

    # From docs to batches

    def prepare(self, docs: Sequence[Doc | DocText]) -> tuple[EncodedDocs, Iterator[Batch]]:
        """Cut docs into windows of pieces, and pack these into batches for the engine."""
        encoded = self._encode(docs)
        return encoded, self._batches(encoded)

    def _encode(
        self,
        docs: Sequence[Doc | DocText],
        *,
        with_docs: bool = False,
        blank_windows: bool = False,
    ) -> EncodedDocs:
        return encode_docs(
            docs,
            self.loaded.tokenizer,
            window=self.loaded.window,
            overlap=self.settings.overlap,
            pooling=self.settings.pooling,
            doc_pooling=self.settings.doc_pooling if with_docs else None,
            pieces_from=self.settings.pieces_from,
            blank_windows=blank_windows,
        )

    def _batches(self, encoded: EncodedDocs, *, special: bool = False) -> Iterator[Batch]:
        tokenizer = self.loaded.tokenizer
        return make_batches(
            encoded.windows,
            prefix=tokenizer.prefix,
            suffix=tokenizer.suffix,
            pad_id=self.loaded.pad_id,
            max_batch_pieces=self.max_batch_pieces,
            special=special or encoded.special,
            length_multiple=self.engine.length_multiple,
            max_length=self.loaded.window,
        )

    def _ragged_batches(self, encoded: EncodedDocs) -> Iterator[RaggedBatch]:
        tokenizer = self.loaded.tokenizer
        return make_ragged_batches(
            encoded.windows,
            prefix=tokenizer.prefix,
            suffix=tokenizer.suffix,
            max_batch_pieces=self.max_batch_pieces,
            special=encoded.special,
        )

    def _alloc_rows(self, encoded: EncodedDocs, ops: Ops, layers: Sequence[int] | None) -> Floats2d:
        n_states = 1 if layers is None else len(layers)
        return ops.alloc2f(encoded.pooling.n_rows, n_states * self.width)

    def _layered_engine(self, layers: Sequence[int]) -> TrainableEngine:
        engine = self.engine
        if not isinstance(engine, TrainableEngine):
            raise ConfigError(
                f"layers = {list(layers)}: the hidden states of inner layers need engine = "
                f"'torch'. engine = {self.settings.engine!r} returns only the last ones. Use the "
                "original pipeline, from which 'spacy distil quantize' made this one."
            )
        return engine


def _pack(files: Mapping[str, bytes | Parts]) -> bytes:
    """Serialize files as msgpack does, which would copy them several times.

    Raises WeightsError for a file that is longer than msgpack can say.
    """
    packed: list[Content] = [bytes([0x80 | len(files)])]  # a map
    for name, content in files.items():
        parts = as_parts(content)
        n_bytes = sum(map(len, parts))
        if n_bytes > _LONGEST:
            raise WeightsError(
                f"{name} of the encoder has {n_bytes:,} bytes: to_bytes, pickling and processes "
                f"that are not forked take at most {_LONGEST:,}. Use to_disk and from_disk."
            )
        packed += [srsly.msgpack_dumps(name), b"\xc6" + n_bytes.to_bytes(4, "big"), *parts]
    return b"".join(packed)


def _unpack(data: bytes) -> dict[str, Content]:
    """Unpack what `EncoderShim.to_bytes` returned. Raises WeightsError if it has changed since."""
    try:
        files = srsly.msgpack_loads(data)
        return check_sums(files) if files else {}
    except Exception as error:  # msgpack raises many kinds for damaged bytes
        raise WeightsError(
            f"The bytes of an encoder are damaged: {error}. Make them again with to_bytes."
        ) from error


def get_encoder(model: Model) -> EncoderShim:
    """Return the encoder of a model that `spacy-distil.DistilTransformer.v1` made."""
    for shim in model.shims:
        if isinstance(shim, EncoderShim):
            return shim
    raise ConfigError(
        f"The model of a distil_transformer must be spacy-distil.DistilTransformer.v1, "
        f"not {model.name!r}."
    )
