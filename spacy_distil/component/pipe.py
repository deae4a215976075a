"""The component `distil_transformer`: to spaCy a `Tok2Vec`, with an `update` of its own."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from spacy.language import Language
from spacy.pipeline.tok2vec import Tok2Vec, Tok2VecListener
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import get_minor_version_range, minibatch
from spacy.vocab import Vocab
from thinc.api import Config, Model, Optimizer
from thinc.types import Floats2d
from wasabi import msg

from spacy_distil import __version__
from spacy_distil.component.interop import (
    AnnotationSetter,
    PredictedDocs,
    install_extension,
    predict_with_pieces,
    set_trf_data,
)
from spacy_distil.component.listener import listeners_in, overwritten, refuse_ambiguous
from spacy_distil.component.shim import get_encoder
from spacy_distil.encoding import split_docs
from spacy_distil.engines.files import EngineName
from spacy_distil.errors import ConfigError

T = TypeVar("T")

# Who reports the gradient of hidden states, beside the listeners, whose `id` is never 0.
HIDDEN_STATES = 0

# Of this package, with or without extras and versions.
_REQUIREMENT = re.compile(r"spacy[-_.]distil\s*($|[\[<>=!~;,@ ])", re.IGNORECASE)

DEFAULT_MODEL = Config().from_str(
    """
[model]
@architectures = "spacy-distil.DistilTransformer.v1"
name = "distilbert-base-uncased"
"""
)["model"]


@Language.factory(
    "distil_transformer",
    assigns=["doc.tensor"],
    default_config={"model": DEFAULT_MODEL, "set_extra_annotations": None},
)
def make_distil_transformer(
    nlp: Language,
    name: str,
    model: Model[list[Doc], list[Floats2d]],
    set_extra_annotations: AnnotationSetter | None,
) -> DistilTransformerPipe:
    """Construct the component.

    model: a `spacy-distil.DistilTransformer.v1`.
    set_extra_annotations: null, or a function as spacy-transformers takes it: `doc._.trf_data` is
        set, with the vectors of all pieces, and then it is called with docs and batch.
    """
    return DistilTransformerPipe(nlp.vocab, model, name, set_extra_annotations)


@dataclass
class OpenBatch:
    """A batch between the encoder's forward and its backward pass.

    docs: what was encoded.
    d_states: the gradients of all hidden states that were handed out, summed up,
        (n_tokens of all docs, width for each of the layers).
    last: columns of the last layer among them, whose gradient the listeners report.
    n_hidden: number of the first columns, whose gradient is to come from elsewhere; 0 for none.
    backprop: takes `d_states`, or its first columns alone.
    waiting: ids of the listeners that have not reported a gradient yet, and HIDDEN_STATES where
        it is to come from elsewhere too.
    reported: ids of those who have.
    optimizer: of a step that was asked for before any gradient was there.
    """

    docs: list[Doc]
    d_states: Floats2d
    last: slice
    n_hidden: int
    backprop: Callable[[Floats2d], None]
    waiting: set[int] = field(default_factory=set)
    reported: set[int] = field(default_factory=set)
    optimizer: Optimizer | None = field(default=None, repr=False)

    @property
    def has_gradient(self) -> bool:
        """Whether anybody has reported."""
        return bool(self.reported)

    @property
    def has_heard_listeners(self) -> bool:
        """Whether a listener has reported."""
        return bool(self.reported - {HIDDEN_STATES})

    def run_backward(self) -> None:
        """The encoder's backward pass. Layers above those that have a gradient get none, not even
        zeros, with which their weights would decay.
        """
        n_columns = None if self.has_heard_listeners else self.n_hidden
        self.backprop(self.d_states[:, :n_columns])

    def is_over(self, docs: list[Doc]) -> bool:
        """Whether a prediction for `docs` means that the batch is done with: its listeners have
        reported, or never will, because these are other docs than the ones to be annotated between
        its forward and its backward pass.
        """
        own = set(map(id, self.docs))
        return self.has_heard_listeners or any(id(doc) not in own for doc in docs)


class DistilTransformerPipe(Tok2Vec):
    """A transformer encoder shared by all pipes that listen to it.

    It writes `doc.tensor`, (n_tokens, width). In training each listener reports its gradient once;
    the encoder runs backward when the last of them has, or, where some stay silent (frozen, or
    without gold in this batch), at the next `finish_update` or `update`. An optimizer step that is
    asked for in between, as `nlp.update(sgd=...)` does, waits for the backward pass.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], list[Floats2d]],
        name: str = "transformer",
        set_extra_annotations: AnnotationSetter | None = None,
    ) -> None:
        super().__init__(vocab, model, name)
        self.set_extra_annotations = set_extra_annotations
        if set_extra_annotations is not None:
            install_extension()
        self._open: OpenBatch | None = None
        self._ahead: set[Future[list[Floats2d]]] = set()  # what threads of `pipe` work on
        self._linked = self.listener_map
        self._overwriter: str | None = None
        get_encoder(model)  # raises where the model is none of ours

    # Listeners

    def add_listener(self, listener: Tok2VecListener, component_name: str) -> None:
        super().add_listener(listener, component_name)
        self._fit_width(listener, component_name)

    def find_listeners(self, component: Any) -> None:
        """Link the listeners of a pipe that stands behind this one. spaCy calls it for each of
        these in their order, once it has put a new `listener_map` in place.

        The next encoder overwrites `doc.tensor`: a listener behind it that asks for any encoder
        listens to that one, and one that asks for this one is a ConfigError.
        """
        if self._linked is not self.listener_map:
            self._linked, self._overwriter = self.listener_map, None
        if self._overwriter is None:
            super().find_listeners(component)
        elif any(each.upstream_name == self.name for each in listeners_in(component)):
            raise ConfigError(overwritten(component.name, self.name, self._overwriter))
        if isinstance(component, Tok2Vec):
            self._overwriter = component.name

    # Prediction

    def predict(self, docs: Iterable[Doc]) -> list[Floats2d]:
        """Token vectors of each doc, (n_tokens, width) float32."""
        docs = list(docs)
        self._close_for(docs)
        return self._encode(docs)

    def set_annotations(self, docs: Iterable[Doc], tokvecses: list[Floats2d]) -> None:
        """Write `doc.tensor`, and `doc._.trf_data` where extra annotations are asked for.

        tokvecses: what `predict` returned.
        """
        docs = list(docs)
        super().set_annotations(docs, tokvecses)
        if self.set_extra_annotations is not None:
            if not isinstance(tokvecses, PredictedDocs):
                raise ValueError(
                    f"{self.name!r} sets doc._.trf_data: its set_annotations takes what its "
                    f"predict returned, which is more than a list of arrays; got {type(tokvecses)}."
                )
            set_trf_data(docs, tokvecses.batch)
            self.set_extra_annotations(docs, tokvecses.batch)

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Apply the pipe to a stream of docs, a batch ahead of the pipes that come next.

        The next batch is encoded in a thread while the other pipes, which leave most cores idle,
        process the docs of this one. So docs come out once the batch behind them has been read. For
        a live stream there is batch_size = 1: docs are encoded as they come. Where the heads
        compute on a GPU nothing is encoded ahead, since the current GPU belongs to a thread.
        """
        if batch_size == 1 or self.model.ops.device_type != "cpu":
            yield from super().pipe(stream, batch_size=batch_size)
            return
        handle_error = self.get_error_handler()
        executor = ThreadPoolExecutor(max_workers=1)
        try:
            batches = map(partial(self._submit, executor), minibatch(stream, size=batch_size))
            for docs, tokvecs in _one_ahead(batches):
                try:
                    self.set_annotations(docs, tokvecs.result())
                except Exception as error:
                    handle_error(self.name, self, docs, error)
                else:
                    yield from docs
        finally:
            # Whoever ends the stream early does not wait for a batch that has not begun.
            executor.shutdown(cancel_futures=True)

    def _submit(
        self, executor: ThreadPoolExecutor, docs: list[Doc]
    ) -> tuple[list[Doc], Future[list[Floats2d]]]:
        self._close_for(docs)
        tokvecs = executor.submit(self._encode, docs)
        self._ahead.add(tokvecs)
        tokvecs.add_done_callback(self._ahead.discard)
        return docs, tokvecs

    def _encode(self, docs: list[Doc]) -> list[Floats2d]:
        encoder, ops = get_encoder(self.model), self.model.ops
        if self.set_extra_annotations is None:
            return encoder.predict_docs(docs, ops)
        return predict_with_pieces(encoder, docs, ops)

    def _wait_for_ahead(self) -> None:
        """Let the threads of `pipe` end what they encode: their generators may be suspended while
        the weights, or the docs, are about to change.
        """
        self._ahead -= wait(tuple(self._ahead)).done

    @contextmanager
    def memory_zone(self, mem: Any = None) -> Iterator[Any]:
        """What `nlp.memory_zone` enters: nothing reads the zone's docs after it.

        mem: cymem's pool of the zone.
        """
        try:
            yield mem
        finally:
            self._wait_for_ahead()

    # Training

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Encode a batch for the listeners, and get ready to learn from their gradients.

        drop: not used; dropout is that of the encoder's own config.
        sgd: an optimizer, to take a step as soon as the gradients are there.
        losses: gets the sum of the squared gradients that come back, under the component's name.
        """
        losses = {} if losses is None else losses
        docs = self._next_docs(examples, losses, "update")
        if self.listeners:
            _, opened = self._begin(docs, None, losses)
            opened.optimizer = sgd or None
        return losses

    def update_hidden(
        self,
        examples: Iterable[Example],
        layers: Sequence[int],
        *,
        losses: dict[str, float] | None = None,
    ) -> tuple[Floats2d, Callable[[Floats2d], None]]:
        """As `update`, and hand out hidden states of the encoder, which learn from a gradient of
        their own. The batch waits for it as for that of one more listener; it needs none.

        layers: 0 for the embeddings, i for the output of layer i.
        losses: as in `update`, for what listeners report.
        RETURNS (hidden, backprop): the token vectors of these layers side by side,
            (n_tokens of all docs, len(layers) * width), not to be written to, and what takes their
            gradient, once.
        """
        losses = {} if losses is None else losses
        docs = self._next_docs(examples, losses, "update_hidden")
        encoder = get_encoder(self.model)
        if not encoder.is_trainable:
            raise ConfigError(
                f"The hidden states of {self.name!r} cannot learn: its model has frozen = "
                f"{encoder.settings.frozen} and learn_rate_scale = "
                f"{encoder.settings.learn_rate_scale}. Set frozen = false and learn_rate_scale "
                "above 0, or leave out the stage that teaches hidden states."
            )
        states, opened = self._begin(docs, layers, losses)
        opened.waiting.add(HIDDEN_STATES)

        def backprop(d_hidden: Floats2d) -> None:
            self._expect(opened, HIDDEN_STATES)
            opened.d_states[:, : opened.n_hidden] += d_hidden
            self._has_reported(opened, HIDDEN_STATES)

        return states[:, : opened.n_hidden], backprop

    def finish_update(self, sgd: Optimizer) -> None:
        """Take an optimizer step; once the gradients are there, if a batch is waiting for them."""
        if self._open is not None:
            if not self._open.has_gradient:
                self._open.optimizer = sgd
                return
            self._close()
        self._step(sgd)

    def _step(self, optimizer: Optimizer) -> None:
        self._wait_for_ahead()
        self.model.finish_update(optimizer)

    def _next_docs(
        self, examples: Iterable[Example], losses: dict[str, float], method: str
    ) -> list[Doc]:
        """Get ready for a batch. method: that was called with it. RETURNS: its docs."""
        self._close()
        self._wait_for_ahead()
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, f"DistilTransformerPipe.{method}")
        return [example.predicted for example in examples]

    def _begin(
        self, docs: list[Doc], layers: Sequence[int] | None, losses: dict[str, float]
    ) -> tuple[Floats2d, OpenBatch]:
        """Encode a batch, hand the last layer to the listeners and wait for their gradients.

        layers: that `update_hidden` hands out; None where the listeners are all.
        RETURNS (states, batch): (n_tokens of all docs, width for each of the layers), and behind
            them the last layer where it is for the listeners alone.
        """
        encoder, ops = get_encoder(self.model), self.model.ops
        n_hidden = len(layers or ())
        place = 0  # of the last layer
        if layers is not None and self.listeners:
            last = encoder.n_layers
            layers = [*layers] if last in layers else [*layers, last]
            place = layers.index(last)
        if encoder.is_trainable:
            states, backprop = encoder.begin_update_packed(docs, ops, layers)
        else:
            states, backprop = encoder.predict_packed(docs, ops, layers), _ignore_gradient
        self._open = opened = OpenBatch(
            docs=docs,
            d_states=ops.alloc2f(*states.shape),
            last=slice(place * encoder.width, (place + 1) * encoder.width),
            n_hidden=n_hidden * encoder.width,
            backprop=backprop,
            waiting={id(listener) for listener in self.listeners},
        )
        if self.listeners:
            last_states = ops.as_contig(states[:, opened.last])
            tokvecs = split_docs(last_states, [len(doc) for doc in docs])
            batch_id = Tok2VecListener.get_batch_id(docs)
            for listener in self.listeners:
                listener.receive(batch_id, tokvecs, self._collector(opened, id(listener), losses))
        return states, opened

    def _collector(
        self, batch: OpenBatch, listener_id: int, losses: dict[str, float]
    ) -> Callable[[list[Floats2d]], list[Doc]]:
        """The callback that one listener reports its gradient with."""

        def collect(d_tokvecs: list[Any]) -> list[Doc]:
            self._expect(batch, listener_id)
            if d_tokvecs:
                # In one piece: on a GPU each operation on each doc would be a kernel of its own.
                reported = self.model.ops.xp.concatenate(d_tokvecs)
                expected = batch.d_states[:, batch.last]
                if reported.shape != expected.shape:  # numpy would stretch a single row
                    raise ValueError(
                        f"A pipe that listens to {self.name!r} reported a gradient of shape "
                        f"{reported.shape}, expected {expected.shape}."
                    )
                expected += reported
                losses[self.name] += float((reported**2).sum())
            self._has_reported(batch, listener_id)
            return []

        return collect

    def _expect(self, batch: OpenBatch, reporter: int) -> None:
        """Raise RuntimeError where a gradient comes twice, or after its batch has been closed."""
        if self._open is not batch or reporter not in batch.waiting:
            what = f"A pipe that listens to {self.name!r} reported a gradient"
            if reporter == HIDDEN_STATES:
                what = f"The gradient of the hidden states of {self.name!r} was reported"
            raise RuntimeError(
                f"{what} twice, or too late: each is reported once, before the encoder's next "
                "update."
            )

    def _has_reported(self, batch: OpenBatch, reporter: int) -> None:
        """Note that a gradient has been added; run backward where it was the last."""
        batch.waiting.discard(reporter)
        batch.reported.add(reporter)
        if not batch.waiting:
            self._close()

    def _close_for(self, docs: list[Doc]) -> None:
        """End the open batch if these docs are predicted after it."""
        if self._open is not None and self._open.is_over(docs):
            self._close()

    def _close(self) -> None:
        """End the open batch: backward pass, a step if one waits, and no reference kept."""
        batch = self._open
        if batch is None:
            return
        self._forget()
        if batch.has_gradient:
            batch.run_backward()
        if batch.optimizer is not None:
            # Also where this batch brought nothing: earlier ones may have gathered gradients.
            self._step(batch.optimizer)

    def _forget(self) -> None:
        """Drop the open batch, if there is one, and let what is encoded ahead come to its end."""
        self._open = None
        for listener in self.listeners:
            # A listener that keeps a batch would refuse to read doc.tensor once we are frozen.
            listener.receive(None, None, None)  # type: ignore[arg-type]
        self._wait_for_ahead()

    # Initialization and serialization

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
    ) -> None:
        """Load the encoder by its `name`, and tell the listeners its width."""
        validate_get_examples(get_examples, "DistilTransformerPipe.initialize")
        self._forget()
        if nlp is not None:
            refuse_ambiguous(nlp, self)
        self.model.initialize()
        self._fit_widths()
        encoder = get_encoder(self.model)
        msg.info(f"{self.name}: {encoder.settings.name} on {encoder.engine.device_name}")
        if nlp is not None:
            set_requirement(nlp.meta, encoder.settings.engine)
            fill_in_optimizer(nlp)

    def to_bytes(self, *, exclude: Sequence[str] = ()) -> bytes:
        self._close_if_learned()
        return super().to_bytes(exclude=exclude)

    def from_bytes(self, data: bytes, *, exclude: Sequence[str] = ()) -> DistilTransformerPipe:
        self._forget()
        super().from_bytes(data, exclude=exclude)
        self._fit_widths()
        return self

    def to_disk(self, path: str | Path, *, exclude: Sequence[str] = ()) -> None:
        """Write config, weights or graph, and tokenizer into a directory: see `engines/files`."""
        self._close_if_learned()
        if "model" not in exclude:
            get_encoder(self.model).to_disk(path)

    def from_disk(self, path: str | Path, *, exclude: Sequence[str] = ()) -> DistilTransformerPipe:
        """Read what `to_disk` wrote. Raises WeightsError where it cannot be used."""
        self._forget()
        if "model" not in exclude:
            encoder = get_encoder(self.model).from_disk(path)
            self.model.set_dim("nO", encoder.width, force=True)
            self._fit_widths()
        return self

    def __reduce__(self) -> Any:
        """For pickle and copies, which take what was learned, and nothing that is in progress."""
        self._close()  # a batch that nobody has learned from: listeners keep what has no copy
        self._wait_for_ahead()
        return super().__reduce__()

    def _close_if_learned(self) -> None:
        if self._open is not None and self._open.has_gradient:
            self._close()

    def _fit_widths(self) -> None:
        for name in self.listening_components:
            for listener in self.listener_map[name]:
                self._fit_width(listener, name)

    def _fit_width(self, listener: Tok2VecListener, component_name: str) -> None:
        """Give a listener our width, or refuse the one that it has."""
        width = self.model.maybe_get_dim("nO")
        if width is None:
            return
        if listener.maybe_get_dim("nO") is None:
            listener.set_dim("nO", width)
        elif listener.get_dim("nO") != width:
            raise ConfigError(
                f"{component_name!r} listens for vectors of width {listener.get_dim('nO')}, but "
                f"{self.name!r} makes vectors of width {width}. Set width = {width} in "
                f"[components.{component_name}.model.tok2vec], or leave it out with "
                "spacy-distil.Listener.v1, and train the pipe again."
            )


def _ignore_gradient(d_states: Floats2d) -> None:
    """The backward pass of an encoder that is frozen."""


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each after the next one has been made. Where that fails, those made come
    first.
    """
    ahead = deque(islice(items, 1))
    while ahead:
        try:
            ahead.extend(islice(items, 1))
        except Exception:
            yield from ahead
            raise
        yield ahead.popleft()


def fill_in_optimizer(nlp: Language) -> None:
    """Fill in the variables of a pipeline's [training.optimizer].

    spaCy resolves that block alone, where a variable such as `${training.max_steps}` means nothing:
    in `nlp.resume_training`, and at the end of `nlp.initialize` without an optimizer.
    """
    training = nlp.config.get("training", {})
    if "${" in str(training.get("optimizer", "")):
        training["optimizer"] = nlp.config.interpolate()["training"]["optimizer"]


def set_requirement(meta: dict[str, Any], engine: EngineName) -> None:
    """Write into a pipeline's meta what its encoder needs, extra included.

    `spacy package` finds out by itself that a pipeline needs spacy-distil, but not which extra.
    """
    extra = "[train]" if engine == "torch" else ""
    others = [one for one in meta.get("requirements", []) if not _REQUIREMENT.match(one)]
    ours = f"spacy-distil{extra}{get_minor_version_range(__version__)}"
    meta["requirements"] = [*others, ours]
