"""The listener `spacy-distil.Listener.v1`: spaCy's, with the width inferred."""

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
    """Token vectors of a shared encoder that stands earlier in the pipeline.

    Differs from `spacy.Tok2VecListener.v1`, which works as well, in two points: `width` can be left
    out, and docs without tokens are no error while the encoder is frozen.

    upstream: name of the encoder's component, or "*" for any.
    width: width of its vectors; null to take it from the encoder.
    """
    return DistilListener(upstream, width)


class DistilListener(Tok2VecListener):
    # spaCy's `debug model` looks for "transformer-listener" to find the component "transformer".
    name = "distil-transformer-listener"

    def __init__(self, upstream_name: str, width: int | None) -> None:
        Model.__init__(self, self.name, forward, dims={"nO": width})
        self.upstream_name = upstream_name
        self._batch_id = None
        self._outputs = None
        self._backprop = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle and copies, which do not listen to the batch that may be open."""
        reduced: Any = super().__reduce_ex__(protocol)
        function, args, (attributes, slots), *_ = reduced
        received = dict.fromkeys(("_batch_id", "_outputs", "_backprop"))
        return function, args, ({**attributes, **received}, slots)


def forward(model: DistilListener, docs: InT, is_train: bool) -> tuple[OutT, Callable]:
    if model.maybe_get_dim("nO") is None:
        raise ConfigError(
            f"A pipe listens to {model.upstream_name!r} for vectors of unknown width: no "
            "distil_transformer of that name stands before it, or none that has weights. Correct "
            "the order of the pipeline or the listener's upstream, or set the listener's width if "
            "it is to hear another kind of encoder."
        )
    if not is_train or model._batch_id is not None:
        return forward_tok2vec(model, docs, is_train)
    # No update has come from upstream: it is frozen, and has annotated the docs.
    if any(len(doc) and not doc.tensor.size for doc in docs):
        raise ConfigError(
            f"A pipe listens to {model.upstream_name!r}, which is frozen and set no doc.tensor. "
            "Add the encoder's component to [training] annotating_components. Before nlp.rehearse, "
            "which leaves encoders as they are, run it over the docs."
        )
    width = model.get_dim("nO")
    outputs: list[Any] = [doc.tensor if len(doc) else model.ops.alloc2f(0, width) for doc in docs]
    return outputs, no_gradient


def no_gradient(d_tokvecs: OutT) -> InT:
    """The way back to an encoder that is frozen."""
    return []


def listeners_in(component: Any) -> Iterator[Tok2VecListener]:
    """The listeners in the model of a pipe, which may have none."""
    model = getattr(component, "model", None)
    if isinstance(model, Model):
        yield from (node for node in model.walk() if isinstance(node, Tok2VecListener))


def overwritten(name: str, upstream: str, other: str) -> str:
    """What to say where a pipe listens to an encoder whose vectors another one overwrites."""
    return (
        f"{name!r} listens to {upstream!r}, but would read the vectors of {other!r}, which stands "
        f"between them and overwrites doc.tensor. Place {name!r} before {other!r} in the pipeline, "
        f"or give it an encoder of its own before {other!r} is added: "
        f'nlp.replace_listeners("{upstream}", "{name}", ["model.tok2vec"]). What has just been '
        "added can be taken away again with nlp.remove_pipe."
    )


def refuse_ambiguous(nlp: Language, encoder: Tok2Vec) -> None:
    """Raise ConfigError where a pipe behind `encoder` would learn from another encoder than the
    nearest, whose vectors it reads in prediction: it names an earlier one, or it listens to any.

    spaCy's own `Tok2Vec` takes every such pipe behind it, whatever stands between them; and spaCy
    links pipes to those encoders alone that are enabled, which frozen ones are not while the others
    are initialized.
    """
    enabled = set(nlp.pipe_names)
    encoders: list[tuple[str, Tok2Vec]] = []  # before the pipe at hand
    for name, pipe in nlp.components:
        if isinstance(pipe, Tok2Vec):
            encoders.append((name, pipe))
            continue
        if name not in enabled or all(each is not encoder for _, each in encoders):
            continue
        nearest = encoders[-1][0]
        upstreams = {listener.upstream_name for listener in listeners_in(pipe)}
        for other, each in encoders[:-1]:
            if other in upstreams:
                raise ConfigError(overwritten(name, other, nearest))
            takes_all = type(each).find_listeners is Tok2Vec.find_listeners
            if "*" in upstreams and other in enabled and (takes_all or nearest not in enabled):
                raise ConfigError(
                    f'{name!r} listens to "*": it would learn from {other!r}, and in prediction '
                    f'read the vectors of {nearest!r}. Set upstream = "{nearest}" in '
                    f'[components.{name}.model.tok2vec], or upstream = "{other}" if {nearest!r} is '
                    "to stay disabled."
                )
