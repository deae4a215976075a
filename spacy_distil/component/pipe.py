"""The component `distil_transformer`: a spaCy `Tok2Vec` with its own `update`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.pipeline.tok2vec import Tok2Vec, Tok2VecListener
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import minibatch
from spacy.vocab import Vocab
from thinc.api import Config, Model, Optimizer
from thinc.types import Floats2d
from wasabi import msg

from spacy_distil.component.ahead import Ahead
from spacy_distil.component.interop import (
    AnnotationSetter,
    PredictedDocs,
    install_extension,
    predict_with_pieces,
    set_trf_data,
)
from spacy_distil.component.listener import (
    DOC_VECTOR,
    DistilListener,
    adopt,
    check_annotating,
    check_upstreams,
    listeners_in,
    overwritten_message,
    reads_docs,
    reads_pairs,
)
from spacy_distil.component.nlp_config import fill_in_optimizer, set_requirements, warn_of_warmup
from spacy_distil.component.open_batch import HIDDEN_STATES, OpenBatch
from spacy_distil.component.shim import get_encoder
from spacy_distil.encoding import DocText, read_docs, split_docs, to_ops
from spacy_distil.encoding.language import describe_foreign
from spacy_distil.errors import ConfigError

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
    set_extra_annotations: null, or a callback as in spacy-transformers. If it is set,
        `doc._.trf_data` gets the vectors of all pieces, and then the callback receives each
        annotated batch of docs and their pieces.
    """
    return DistilTransformerPipe(nlp.vocab, model, name, set_extra_annotations)


class DistilTransformerPipe(Tok2Vec):
    """A transformer encoder shared by all pipes that listen to it.

    It writes `doc.tensor`, (n_tokens, width). In training each listener reports its gradient once.
    The backward pass runs when the last listener has reported. If some do not (they are frozen, or
    have no gold in this batch), it runs at the next `finish_update` or `update`. If an optimizer
    step is requested earlier, as `nlp.update(sgd=...)` does, the step waits for the backward pass.
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
        self._ahead = Ahead()  # the threads of `pipe`
        self._linked = self.listener_map
        self._overwriter: str | None = None
        get_encoder(model)  # raises if the model is not ours

    # Listeners

    def add_listener(self, listener: Tok2VecListener, component_name: str) -> None:
        super().add_listener(listener, component_name)
        adopt(listener)
        if reads_docs(listener) and not get_encoder(self.model).has_docs:
            raise ConfigError(
                f'{component_name!r} needs vectors of whole docs. Set doc_pooling = "mean" in '
                f"[components.{self.name}.model]."
            )
        if isinstance(listener, DistilListener):
            listener.link(component_name, self.name, self.model)
        self._fit_width(listener, component_name)

    def find_listeners(self, component: Any) -> None:
        """Link the listeners of a pipe that comes after this one. spaCy sets a new `listener_map`,
        and then calls this for each of these pipes in order.

        The next encoder overwrites `doc.tensor`. So a pipe after it that listens to any encoder
        listens to that one, and a pipe that listens to this one by name is a ConfigError.
        """
        if self._linked is not self.listener_map:
            self._linked, self._overwriter = self.listener_map, None
        if self._overwriter is None:
            super().find_listeners(component)
            # A function in the pipeline has no name.
            if getattr(component, "name", None) in self.listening_components:
                from spacy_distil.engines.fused import use_head_ops

                use_head_ops(component.model)
        elif any(listener.upstream_name == self.name for listener in listeners_in(component)):
            raise ConfigError(overwritten_message(component.name, self.name, self._overwriter))
        if isinstance(component, Tok2Vec):
            self._overwriter = component.name

    # Prediction

    def predict(self, docs: Iterable[Doc]) -> list[Floats2d]:
        """Compute the vectors of each doc, (n_vectors, width) float32: of its tokens, and with
        `doc_pooling` its own after them.
        """
        docs = list(docs)
        self._close_for(docs)
        return self._encode(docs)

    def set_annotations(self, docs: Iterable[Doc], tokvecses: list[Floats2d]) -> None:
        """Write `doc.tensor`, and `doc._.trf_data` if the component sets extra annotations.

        With `doc_pooling` the vector of the doc goes to `doc.user_data`, for `distil_vectors`.

        tokvecses: the result of `predict`.
        """
        docs = list(docs)
        if get_encoder(self.model).has_docs:
            for doc, vectors in zip(docs, tokvecses, strict=True):
                doc.tensor = vectors[:-1]  # type: ignore[assignment]
                doc.user_data[DOC_VECTOR] = vectors[-1].copy()
        else:
            super().set_annotations(docs, tokvecses)
        if self.set_extra_annotations is not None:
            if not isinstance(tokvecses, PredictedDocs):
                raise ValueError(
                    f"{self.name!r} sets doc._.trf_data: its set_annotations takes the result of "
                    f"its predict, which is more than a list of arrays; got {type(tokvecses)}."
                )
            set_trf_data(docs, tokvecses.batch)
            self.set_extra_annotations(docs, tokvecses.batch)

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Apply the pipe to a stream of docs, one batch ahead of the next pipes.

        A thread encodes the next batch while the other pipes, which leave most cores idle, process
        this one. So docs are yielded after the next batch has been read. For a live stream set
        batch_size = 1: each doc is encoded at once. If the heads run on a GPU, nothing is encoded
        ahead, since each thread has its own current GPU.
        """
        if batch_size == 1 or self.model.ops.device_type != "cpu":
            yield from super().pipe(stream, batch_size=batch_size)
            return
        handle_error = self.get_error_handler()
        batches = self._batches(stream, batch_size)
        for (docs, _), tokvecs in self._ahead.map(lambda batch: self._encode(batch[1]), batches):
            try:
                self.set_annotations(docs, tokvecs())
            except Exception as error:
                handle_error(self.name, self, docs, error)
            else:
                yield from docs

    def _batches(
        self, stream: Iterable[Doc], batch_size: int
    ) -> Iterator[tuple[list[Doc], list[DocText]]]:
        """Read docs before a thread encodes them: it may outlive their memory zone."""
        for docs in minibatch(stream, size=batch_size):
            self._close_for(docs)
            yield docs, read_docs(docs)

    def _encode(self, docs: Sequence[Doc | DocText]) -> list[Floats2d]:
        encoder, ops = get_encoder(self.model), self.model.ops
        if self.set_extra_annotations is None:
            return encoder.predict_docs(docs, ops, with_docs=True)
        return predict_with_pieces(encoder, docs, ops)

    # Training

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Encode a batch for the listeners, and prepare to learn from their gradients.

        drop: not used; the encoder's own config and settings define dropout.
        sgd: an optimizer. It takes a step when all gradients have been reported.
        losses: the sum of the squared gradients is added here, under the component's name.
        RETURNS: losses.
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
        """Do the same as `update`, and return hidden states of the encoder, which also learn.

        The batch waits for their gradient as it waits for a listener. It works without listeners.

        layers: 0 for the embeddings, i for the output of layer i.
        losses: as in `update`.
        RETURNS (hidden, backprop): hidden are the token vectors of these layers side by side,
            (n_tokens of all docs, len(layers) * width); do not write to this array. The callback
            takes their gradient. Call it once.
        """
        losses = {} if losses is None else losses
        docs = self._next_docs(examples, losses, "update_hidden")
        encoder = get_encoder(self.model)
        if not encoder.is_trainable:
            raise ConfigError(
                f"The hidden states of {self.name!r} cannot learn: its model has frozen = "
                f"{encoder.settings.frozen} and learn_rate_scale = "
                f"{encoder.settings.learn_rate_scale}. Set frozen = false and learn_rate_scale "
                "above 0, or leave out the stage for hidden states."
            )
        states, opened = self._begin(docs, layers, losses)
        opened.waiting.add(HIDDEN_STATES)

        def backprop(d_hidden: Floats2d) -> None:
            self._expect(opened, HIDDEN_STATES)
            opened.d_states[opened.tokens, : opened.n_hidden] += d_hidden
            self._has_reported(opened, HIDDEN_STATES)

        return states[opened.tokens, : opened.n_hidden], backprop

    def finish_update(self, sgd: Optimizer) -> None:
        """Take an optimizer step. If a batch waits for gradients, the step waits for them too."""
        if self._open is not None:
            if not self._open.has_gradient:
                self._open.optimizer = sgd
                return
            self._close()
        self._step(sgd)

    def _step(self, optimizer: Optimizer) -> None:
        self._ahead.wait()
        self.model.finish_update(optimizer)

    def _next_docs(
        self, examples: Iterable[Example], losses: dict[str, float], method: str
    ) -> list[Doc]:
        """Close the open batch, and return the docs of the next one.

        method: name of the method that got the examples, for errors.
        """
        self._close()
        self._ahead.wait()
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, f"DistilTransformerPipe.{method}")
        return [example.predicted for example in examples]

    def _begin(
        self, docs: list[Doc], layers: Sequence[int] | None, losses: dict[str, float]
    ) -> tuple[Floats2d, OpenBatch]:
        """Encode a batch, pass the last layer to the listeners, and open the batch.

        layers: the layers that `update_hidden` returns; None for `update`.
        RETURNS (states, batch): (n_vectors of all docs, width for each of the layers). If only the
            listeners need the last layer, it follows those that were requested. If nothing needs
            any, there are no vectors.
        """
        encoder, ops = get_encoder(self.model), self.model.ops
        readers = [listener for listener in self.listeners if not reads_pairs(listener)]
        n_hidden = len(layers or ())
        place = 0  # index of the last layer
        if layers is not None and readers:
            last = encoder.n_layers
            layers = [*layers] if last in layers else [*layers, last]
            place = layers.index(last)
        backprop: Callable[[Floats2d], None] = _ignore_gradient
        if layers is None and not readers:
            states = ops.alloc2f(0, encoder.width)
        elif encoder.is_trainable:
            states, backprop = encoder.begin_update_packed(docs, ops, layers, with_docs=True)
        else:
            states = encoder.predict_packed(docs, ops, layers, with_docs=True)
        self._open = opened = OpenBatch(
            docs=docs,
            d_states=ops.alloc2f(*states.shape),
            last=slice(place * encoder.width, (place + 1) * encoder.width),
            n_hidden=n_hidden * encoder.width,
            backprop=backprop,
            waiting={id(listener) for listener in self.listeners},
            tokens=self._find_tokens(docs) if encoder.has_docs and len(states) else slice(None),
        )
        batch_id = Tok2VecListener.get_batch_id(docs)
        for listener in self.listeners:
            if reads_pairs(listener):
                report = self._collector(opened, id(listener), slice(None), losses)
                listener.receive(batch_id, [], report)
        if readers:
            last_states = ops.as_contig(states[:, opened.last])
            vectors = split_docs(last_states, encoder.count_vectors(docs))
            tokvecs = [own[: len(doc)] for doc, own in zip(docs, vectors, strict=True)]
            for listener in readers:
                has_docs = reads_docs(listener)
                listener.receive(
                    batch_id,
                    vectors if has_docs else tokvecs,
                    self._collector(
                        opened, id(listener), slice(None) if has_docs else opened.tokens, losses
                    ),
                )
        return states, opened

    def _find_tokens(self, docs: Sequence[Doc]) -> Any:
        """List the rows of tokens among the vectors of docs: (n_tokens of all docs,)."""
        is_token = np.ones(sum(map(len, docs)) + len(docs), dtype=bool)
        is_token[np.cumsum([len(doc) + 1 for doc in docs], dtype=np.int64) - 1] = False
        return to_ops(self.model.ops, np.flatnonzero(is_token))

    def _collector(
        self, batch: OpenBatch, listener_id: int, rows: Any, losses: dict[str, float]
    ) -> Callable[[list[Floats2d]], list[Doc]]:
        """Make the callback with which a listener reports its gradient.

        rows: of the batch's vectors, that the listener has received.
        """

        def collect(d_tokvecs: list[Any]) -> list[Doc]:
            self._expect(batch, listener_id)
            if d_tokvecs:
                # In one array, because each operation on a GPU starts a kernel.
                reported = self.model.ops.xp.concatenate(d_tokvecs)
                expected = batch.d_states[rows, batch.last].shape
                if reported.shape != expected:  # numpy would broadcast a single row
                    raise ValueError(
                        f"A pipe that listens to {self.name!r} reported a gradient of shape "
                        f"{reported.shape}, expected {expected}."
                    )
                batch.d_states[rows, batch.last] += reported
                losses[self.name] += float((reported**2).sum())
            self._has_reported(batch, listener_id)
            return []

        return collect

    def _expect(self, batch: OpenBatch, reporter: int) -> None:
        """Raise RuntimeError if a gradient comes twice, or after its batch has been closed."""
        if self._open is not batch or reporter not in batch.waiting:
            event = f"A pipe that listens to {self.name!r} reported a gradient"
            if reporter == HIDDEN_STATES:
                event = f"The gradient of the hidden states of {self.name!r} was reported"
            raise RuntimeError(
                f"{event} twice, or too late: each must be reported once, before the encoder's "
                "next update."
            )

    def _has_reported(self, batch: OpenBatch, reporter: int) -> None:
        """Note that a gradient has been added, and close the batch if it was the last."""
        batch.waiting.discard(reporter)
        batch.reported.add(reporter)
        if not batch.waiting:
            self._close()

    def _close_for(self, docs: list[Doc]) -> None:
        """Close the open batch if it is over when `docs` are predicted."""
        if self._open is not None and self._open.is_over(docs):
            self._close()

    def _close(self) -> None:
        """Close the open batch: run backward, take the step that waits, and drop all references."""
        batch = self._open
        if batch is None:
            return
        self._forget()
        if batch.has_gradient:
            batch.run_backward()
        if batch.optimizer is not None:
            # Even without a gradient of this batch: earlier ones may have gathered gradients.
            self._step(batch.optimizer)

    def _forget(self) -> None:
        """Drop the open batch, if any, and wait for the threads of `pipe`."""
        self._open = None
        for listener in self.listeners:
            # A listener that keeps a batch would not read doc.tensor once the encoder is frozen.
            listener.receive(None, None, None)  # type: ignore[arg-type]
        self._ahead.wait()

    # Initialization and serialization

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
    ) -> None:
        """Load the encoder by its `name`, and set the width of the listeners."""
        validate_get_examples(get_examples, "DistilTransformerPipe.initialize")
        self._forget()
        if nlp is not None:
            check_upstreams(nlp, self)
            check_annotating(nlp, self)
        self.model.initialize()
        self._fit_widths()
        encoder = get_encoder(self.model)
        msg.info(f"{self.name}: {encoder.settings.name} on {encoder.engine.device_name}")
        if nlp is not None:
            foreign = describe_foreign(
                encoder.loaded.tokenizer, encoder.settings.name or "", str(nlp.lang)
            )
            if foreign is not None:
                msg.warn(foreign)
            set_requirements(nlp.meta, encoder.settings.engine, nlp.config)
            fill_in_optimizer(nlp)
            warn_of_warmup(nlp, get_examples)

    def to_bytes(self, *, exclude: Sequence[str] = ()) -> bytes:
        self._close_if_learned()
        return super().to_bytes(exclude=exclude)

    def from_bytes(self, data: bytes, *, exclude: Sequence[str] = ()) -> DistilTransformerPipe:
        self._forget()
        super().from_bytes(data, exclude=exclude)
        self._fit_widths()
        return self

    def to_disk(self, path: str | Path, *, exclude: Sequence[str] = ()) -> None:
        """Write config, weights or graph, and tokenizer into a directory, see `engines/files`."""
        self._close_if_learned()
        if "model" not in exclude:
            get_encoder(self.model).to_disk(path)

    def from_disk(self, path: str | Path, *, exclude: Sequence[str] = ()) -> DistilTransformerPipe:
        """Read what `to_disk` wrote. Raises WeightsError if it cannot be used."""
        self._forget()
        if "model" not in exclude:
            encoder = get_encoder(self.model).from_disk(path)
            self.model.set_dim("nO", encoder.width, force=True)
            self._fit_widths()
        return self

    def __reduce__(self) -> Any:
        """Pickle or copy the pipe, with the weights it has learned and without an open batch."""
        self._close()  # even without a gradient, since listeners refer to the batch
        self._ahead.wait()
        return super().__reduce__()

    def _close_if_learned(self) -> None:
        if self._open is not None and self._open.has_gradient:
            self._close()

    def _fit_widths(self) -> None:
        for name in self.listening_components:
            for listener in self.listener_map[name]:
                self._fit_width(listener, name)

    def _fit_width(self, listener: Tok2VecListener, component_name: str) -> None:
        """Set the width of a listener. Raises ConfigError if it has another one."""
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
    """Do nothing: the backward pass of a frozen encoder."""
