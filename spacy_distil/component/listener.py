"""The listener `spacy-distil.Listener.v1`: spaCy's listener with an inferred width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spacy.language import Language
from spacy.pipeline.tok2vec import Tok2Vec, Tok2VecListener
from spacy.pipeline.tok2vec import forward as forward_tok2vec
from spacy.tokens import Doc
from thinc.api import Model
from thinc.types import Floats2d

from spacy_distil.errors import ConfigError

InT = list[Doc]
OutT = list[Floats2d]


def Listener(upstream: str = "*", width: int | None = None) -> Model[InT, OutT]:
    """Return the token vectors of a shared encoder that comes earlier in the pipeline.

    `spacy.Tok2VecListener.v1` works as well. This listener differs in two points: `width` can be
    left out, and docs without tokens are no error if the encoder is frozen.

    upstream: name of the encoder's component, or "*" for any.
    width: width of the encoder's vectors; null to take it from the encoder.
    """
    return DistilListener(upstream, width)


class DistilListener(Tok2VecListener):
    """The model of `spacy-distil.Listener.v1`."""

    # spaCy's `debug model` looks for "transformer-listener" to find the component "transformer".
    name = "distil-transformer-listener"

    def __init__(self, upstream_name: str, width: int | None) -> None:
        Model.__init__(self, self.name, forward, dims={"nO": width})
        self.upstream_name = upstream_name
        self._batch_id = None
        self._outputs = None
        self._backprop = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle or copy the listener without the batch that may be open."""
        reduced: Any = super().__reduce_ex__(protocol)
        function, args, (attributes, slots), *_ = reduced
        received = dict.fromkeys(("_batch_id", "_outputs", "_backprop"))
        return function, args, ({**attributes, **received}, slots)


def forward(model: DistilListener, docs: InT, is_train: bool) -> tuple[OutT, Callable]:
    if model.maybe_get_dim("nO") is None:
        raise ConfigError(
            f"A pipe listens to {model.upstream_name!r} for vectors of unknown width: no "
            "distil_transformer of that name comes before it, or it has no weights yet. Correct "
            "the order of the pipeline or the listener's upstream, or set the listener's width if "
            "the encoder is of another kind."
        )
    if not is_train or model._batch_id is not None:
        return forward_tok2vec(model, docs, is_train)
    # The encoder has sent no update, so it is frozen and has annotated the docs.
    if any(len(doc) and not doc.tensor.size for doc in docs):
        raise ConfigError(
            f"A pipe listens to {model.upstream_name!r}, which is frozen and set no doc.tensor. "
            "Add the encoder's component to [training] annotating_components. Before nlp.rehearse, "
            "which does not run encoders, run it over the docs."
        )
    width = model.get_dim("nO")
    outputs: list[Any] = [doc.tensor if len(doc) else model.ops.alloc2f(0, width) for doc in docs]
    return outputs, no_gradient


def no_gradient(d_tokvecs: OutT) -> InT:
    """Do nothing: the backward pass to a frozen encoder."""
    return []


def listeners_in(component: Any) -> Iterator[Tok2VecListener]:
    """Yield the listeners in the model of a pipe. It may have none."""
    model = getattr(component, "model", None)
    if isinstance(model, Model):
        yield from (node for node in model.walk() if isinstance(node, Tok2VecListener))


def overwritten_message(name: str, upstream: str, other: str) -> str:
    """Compose the error for a pipe that listens to an encoder whose vectors are overwritten.

    name: of the pipe.
    upstream: name of the encoder that it listens to.
    other: name of the encoder between them.
    """
    return (
        f"{name!r} listens to {upstream!r}, but would read the vectors of {other!r}, which stands "
        f"between them and overwrites doc.tensor. Place {name!r} before {other!r} in the pipeline, "
        f"or give it an encoder of its own before {other!r} is added: "
        f'nlp.replace_listeners("{upstream}", "{name}", ["model.tok2vec"]). nlp.remove_pipe '
        "removes a pipe that has just been added."
    )


def check_upstreams(nlp: Language, encoder: Tok2Vec) -> None:
    """Raise ConfigError if a pipe after `encoder` would learn from one encoder and predict from
    another.

    In prediction a pipe reads the vectors of the nearest encoder before it. It would learn from
    another one in two cases: its listener names an earlier encoder, or it listens to any and spaCy
    links it to an earlier one. spaCy's own `Tok2Vec` links to every such pipe after it, even behind
    another encoder. And spaCy links pipes to enabled encoders only: a frozen one is disabled while
    the others are initialized.
    """
    enabled = set(nlp.pipe_names)
    encoders: list[tuple[str, Tok2Vec]] = []  # before the current pipe
    for name, pipe in nlp.components:
        if isinstance(pipe, Tok2Vec):
            encoders.append((name, pipe))
            continue
        if name not in enabled or all(earlier is not encoder for _, earlier in encoders):
            continue
        nearest = encoders[-1][0]
        upstreams = {listener.upstream_name for listener in listeners_in(pipe)}
        for other, earlier in encoders[:-1]:
            if other in upstreams:
                raise ConfigError(overwritten_message(name, other, nearest))
            takes_all = type(earlier).find_listeners is Tok2Vec.find_listeners
            if "*" in upstreams and other in enabled and (takes_all or nearest not in enabled):
                raise ConfigError(
                    f'{name!r} listens to "*": it would learn from {other!r}, but predict from the '
                    f'vectors of {nearest!r}. Set upstream = "{nearest}" in '
                    f'[components.{name}.model.tok2vec], or upstream = "{other}" if {nearest!r} '
                    "stays disabled."
                )
