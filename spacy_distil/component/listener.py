"""The listener `spacy-distil.Listener.v1`: spaCy's listener with an inferred width."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

from spacy.language import Language
from spacy.pipeline.tok2vec import Tok2Vec, Tok2VecListener
from spacy.pipeline.tok2vec import forward as forward_tok2vec
from spacy.tokens import Doc
from thinc.api import Model
from thinc.types import Floats2d

from spacy_distil.errors import ConfigError

InT = list[Doc]
OutT = list[Floats2d]
WithoutEncoder = Literal["error", "zeros"]


# In `doc.user_data`: the vector of the doc that an encoder with `doc_pooling` made.
DOC_VECTOR = "distil_transformer.doc_vector"


def Listener(
    upstream: str = "*",
    width: int | None = None,
    without_encoder: WithoutEncoder = "error",
    docs: bool = False,
    pairs: bool = False,
) -> Model[InT, OutT]:
    """Return the token vectors of a shared encoder that comes earlier in the pipeline.

    `spacy.Tok2VecListener.v1` works as well, but needs a `width`, and predicts from zeros in a
    pipeline that was loaded without the encoder.

    upstream: name of the encoder's component, or "*" for any.
    width: width of the encoder's vectors; null to take it from the encoder.
    without_encoder: the prediction for docs over which no encoder has run, because it is disabled
        or missing: an "error", or a prediction from "zeros", as in spaCy.
    docs: whether each doc has one more row, its own vector. The encoder needs a `doc_pooling`.
    pairs: whether the pipe encodes pairs of texts with the encoder, as `distil_pair` and
        `distil_qa` do. It then reads no vectors of docs.
    """
    return DistilListener(upstream, width, without_encoder, docs=docs, pairs=pairs)


class DistilListener(Tok2VecListener):
    """The model of `spacy-distil.Listener.v1`, and of a listener of spaCy's behind our encoder.

    pipe_name, encoder_name: the pipe that listens, and the encoder that has found it; None until
        one has.
    without_encoder, docs, pairs: the settings.
    encoder: the model of the encoder, for pairs of texts; None until one has found the listener.
    """

    # spaCy's `debug model` looks for "transformer-listener" to find the component "transformer".
    name = "distil-transformer-listener"
    pipe_name: str | None = None
    encoder_name: str | None = None
    without_encoder: WithoutEncoder = "error"
    docs: bool = False
    pairs: bool = False
    encoder: Model[InT, OutT] | None = None
    # Docs that may come without vectors: in initialization, and the docs of the last update.
    _sample: Sequence[Doc] = ()
    _learned: Sequence[Doc] = ()

    def __init__(
        self,
        upstream_name: str,
        width: int | None,
        without_encoder: WithoutEncoder,
        *,
        docs: bool = False,
        pairs: bool = False,
    ) -> None:
        if docs and pairs:
            raise ConfigError(
                "docs = true and pairs = true in one listener: a pipe that reads pairs of texts "
                "gets no vectors of docs. Leave one of them out."
            )
        if without_encoder not in get_args(WithoutEncoder):
            raise ConfigError(
                f"without_encoder = {without_encoder!r}: expected one of "
                f"{', '.join(get_args(WithoutEncoder))}."
            )
        Model.__init__(self, self.name, forward, init=init, dims={"nO": width})
        self.upstream_name = upstream_name
        self.without_encoder = without_encoder
        self.docs = docs
        self.pairs = pairs
        self._batch_id = None
        self._outputs = None
        self._backprop = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle or copy the listener without the batch that may be open."""
        reduced: Any = super().__reduce_ex__(protocol)
        function, args, (attributes, slots), *_ = reduced
        received = dict.fromkeys(("_batch_id", "_outputs", "_backprop"))
        seen = dict.fromkeys(("_sample", "_learned"), ())
        return function, args, ({**attributes, **received, **seen}, slots)

    def link(self, pipe_name: str, encoder_name: str, encoder: Model[InT, OutT]) -> None:
        """Remember the names of pipe and encoder, for errors, and the encoder, for pairs."""
        self.pipe_name, self.encoder_name = pipe_name, encoder_name
        if self.pairs:
            if self.encoder not in (None, encoder):
                warnings.warn(
                    f"{pipe_name!r} reads pairs of texts with the encoder {encoder_name!r} of "
                    "another pipeline from now on, in its first pipeline too: both have the same "
                    "pipe. Load the first one again to use it.",
                    stacklevel=2,
                )
            self.encoder = encoder

    @property
    def learns(self) -> bool:
        """Whether a batch is open, to which the listener has not reported its gradient."""
        return self._batch_id is not None

    def report(self, d_tokvecs: OutT) -> None:
        """Report the gradient of the open batch; an empty list for none."""
        assert self._backprop is not None
        self._backprop(d_tokvecs)


def forward(model: DistilListener, docs: InT, is_train: bool) -> tuple[OutT, Callable]:
    width = model.maybe_get_dim("nO")
    if width is None:
        raise ConfigError(
            f"A pipe listens to {model.upstream_name!r} for vectors of unknown width: no "
            "distil_transformer of that name comes before it, or it has no weights yet. Correct "
            "the order of the pipeline or the listener's upstream, or set the listener's width if "
            "the encoder is of another kind."
        )
    if is_train and model._batch_id is not None:
        model._sample, model._learned = (), docs
        return forward_tok2vec(model, docs, is_train)
    # Prediction, or an update in which the encoder is frozen and has annotated the docs.
    outputs: list[Any] = []
    for doc in docs:
        vectors: Any = doc.tensor
        if vectors is None or vectors.shape != (len(doc), width):
            vectors = _find_vectors(model, doc, vectors, is_train)
        if model.docs:
            vectors = model.ops.xp.vstack([vectors, _find_doc_vector(model, doc, is_train)])
        outputs.append(vectors)
    return outputs, no_gradient


def reads_docs(listener: Tok2VecListener) -> bool:
    """Whether a listener gets the vectors of docs, too."""
    return isinstance(listener, DistilListener) and listener.docs


def reads_pairs(listener: Tok2VecListener) -> bool:
    """Whether a pipe encodes pairs of texts itself, and gets no vectors."""
    return isinstance(listener, DistilListener) and listener.pairs


def init(model: DistilListener, X: InT | None = None, Y: OutT | None = None) -> None:
    """Let the docs of an initialization pass without vectors: thinc predicts for them, to see the
    width of the result.
    """
    model._sample = () if X is None else list(X)


def adopt(listener: Tok2VecListener) -> None:
    """Let a listener of spaCy's do the same as ours.

    It would read a tensor with other rows than the doc's tokens, and predict from zeros without its
    encoder.
    """
    if type(listener) is Tok2VecListener:
        listener.__class__ = DistilListener
        listener.init = init
        setattr(listener, "_func", forward)  # noqa: B010  as in thinc


def _find_vectors(model: DistilListener, doc: Doc, tensor: Any, is_train: bool) -> Any:
    """Return the vectors of a doc whose tensor has another shape than (n_tokens, width).

    Raises ConfigError if there are none.
    """
    width = model.get_dim("nO")
    if len(doc) and tensor is not None and tensor.size:
        if tensor.ndim == 2 and tensor.shape[1] == width and len(tensor) > len(doc):
            # The retokenizer leaves a row too many when it splits a token.
            return tensor[: len(doc)]
        raise ConfigError(_other_vectors_message(model, doc, tensor))
    if len(doc):
        if is_train:
            raise ConfigError(_not_annotated_message(model))
        if any(doc is each for each in model._learned):
            warnings.warn(
                f"{_not_annotated_message(model)} Now it predicts from zeros, as 'spacy debug "
                "model' always does.",
                stacklevel=2,
            )
        elif model.without_encoder == "error" and not any(doc is each for each in model._sample):
            raise ConfigError(_no_encoder_message(model, doc))
    return model.ops.alloc2f(len(doc), width)


def _find_doc_vector(model: DistilListener, doc: Doc, is_train: bool) -> Any:
    """Return the vector of a doc, (1, width). Raises ConfigError if there is none."""
    vector = doc.user_data.get(DOC_VECTOR)
    width = model.get_dim("nO")
    if vector is not None and vector.shape == (width,):
        return vector[None]
    if is_train:
        raise ConfigError(_not_annotated_message(model))
    without = model.without_encoder == "zeros" or any(doc is each for each in model._learned)
    if not without and not any(doc is each for each in model._sample):
        pipe, encoder = _names(model)
        raise ConfigError(
            f"{pipe} needs the vector of the doc that begins with {doc.text[:40]!r}, but "
            f'{encoder} has set none. Set doc_pooling = "mean" in the encoder\'s model, and run '
            "it over the doc."
        )
    return model.ops.alloc2f(1, width)


def _names(model: DistilListener) -> tuple[str, str]:
    """Name the pipe and its encoder, for errors."""
    upstream = model.encoder_name or model.upstream_name
    return (
        "a pipe" if model.pipe_name is None else repr(model.pipe_name),
        "an encoder before it" if upstream == "*" else repr(upstream),
    )


def _no_encoder_message(model: DistilListener, doc: Doc) -> str:
    pipe, encoder = _names(model)
    name, upstream = model.pipe_name or "NAME", model.encoder_name or "ENCODER"
    return (
        f"Without its encoder, {pipe} would predict from zeros: the doc that begins with "
        f"{doc.text[:40]!r} has no vectors of {encoder}. Enable the encoder, or load or source it "
        "with the pipe. For a pipe that works alone, call nlp.replace_listeners("
        f'"{upstream}", "{name}", ["model.tok2vec"]) in the complete pipeline. To predict from '
        f'zeros, set without_encoder = "zeros" in [components.{name}.model.tok2vec], which is a '
        '"spacy-distil.Listener.v1".'
    )


def _not_annotated_message(model: DistilListener) -> str:
    pipe, encoder = _names(model)
    name, own = model.encoder_name or "ENCODER", model.pipe_name or "NAME"
    return (
        f"In an update {pipe} reads the vectors of {encoder}, which has set no doc.tensor. For "
        "'spacy train', add the encoder to [training] annotating_components. In a loop of your "
        f'own, keep it enabled, as in nlp.select_pipes(enable=["{name}", "{own}"]), and call '
        f'nlp.update with annotates=["{name}"], and with exclude=["{name}"] if its weights must '
        "not change. Before nlp.rehearse, which does not run encoders, run it over the docs."
    )


def _other_vectors_message(model: DistilListener, doc: Doc, tensor: Any) -> str:
    pipe, encoder = _names(model)
    return (
        f"The doc.tensor of the doc that begins with {doc.text[:40]!r} has the shape "
        f"{tensor.shape}, but {pipe} needs the vectors of {encoder}, of shape "
        f"{(len(doc), model.get_dim('nO'))}. Another component has set it, or its tokens have "
        "changed since: run the pipe directly behind its encoder."
    )


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


def check_annotating(nlp: Language, encoder: Tok2Vec) -> None:
    """Raise ConfigError if a pipe that listens to `encoder` annotates in training, but the encoder
    does not: the pipe would predict from docs without vectors.
    """
    annotating = nlp.config["training"].get("annotating_components") or ()
    listening = [name for name in encoder.listening_components if name in annotating]
    if listening and encoder.name not in annotating:
        raise ConfigError(
            f"[training] annotating_components has {listening[0]!r}, which predicts from the "
            f"vectors of {encoder.name!r}. Add {encoder.name!r} to annotating_components, too."
        )
