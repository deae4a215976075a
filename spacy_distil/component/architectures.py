"""The architecture `spacy-distil.DistilTransformer.v1`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from spacy.tokens import Doc
from thinc.api import Model
from thinc.types import Floats2d

from spacy_distil.component.listener import DistilListener, no_gradient, reads_docs
from spacy_distil.component.settings import EncoderSettings
from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.encoding import PiecesFrom
from spacy_distil.encoding.pooling import DocPooling, PoolingName
from spacy_distil.engines.files import EngineName

# An attribute of models that return vectors of docs, too.
_DOCS = "docs"

InT = list[Doc]
OutT = list[Floats2d]


def DistilTransformer(
    name: str,
    engine: EngineName = "torch",
    window: int | None = None,
    overlap: int = 32,
    max_batch_pieces: int | None = None,
    pooling: PoolingName = "mean",
    doc_pooling: DocPooling | None = None,
    pieces_from: PiecesFrom = "text",
    layer: int | None = None,
    mixed_precision: bool = False,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    gradient_checkpointing: bool = False,
    device: str = "auto",
    threads: int | None = None,
    frozen: bool = False,
    learn_rate_scale: float = 1.0,
    layer_decay: float = 1.0,
) -> Model[InT, OutT]:
    """A transformer encoder as a token-to-vector layer: one (n_tokens, width) array per doc, with
    `doc_pooling` (n_tokens + 1, width): the last row is the vector of the doc.

    It is the model of a `distil_transformer` component. It also works inside any pipe that takes a
    `tok2vec`.

    name: directory or hub name of a Hugging Face encoder, which initialization loads.
    engine: "torch" trains and predicts. "onnx" only predicts, on the CPU and without torch;
        `spacy distil quantize` makes such a model from a trained pipeline.
    window: most pieces encoded together, special ones included; null for the most that the encoder
        takes. A longer doc is split into several windows between tokens; nothing is truncated.
    overlap: pieces that neighbouring windows of a long doc share. `pooling` combines their vectors.
    max_batch_pieces: most padded pieces in one forward pass, which bounds its memory in prediction.
        The vectors of all docs of a batch need additional memory. null for the default of the
        engine and its device.
    pooling: the vector of a token is the "mean" of its pieces' vectors, the vector of the "first"
        or the "last" piece, or the "sum" or the "max" of all, number by number. A piece in an
        overlap counts with its vectors in both windows. "cls": the vector of all tokens is the one
        of the special piece at the start of their window ([CLS] or <s>), for pipes that classify
        documents.
    doc_pooling: how `distil_vectors` gets the vector of a doc: the "mean" of all of its pieces,
        special ones included, the "first" piece of its first window, a special one, or the "max" of
        all, number by number. null: there is none, which is faster.
    pieces_from: the tokenizer of pieces reads the "text" of a doc, or its "tokens": each by itself,
        with the space before it, as in spacy-curated-transformers. Whitespace tokens have no pieces
        then.
    layer: number of the layer whose output is used, 1 for the lowest; null for the last. Layers
        above it are neither loaded nor saved. If a family has a norm after its last layer, it comes
        after this one.
    mixed_precision: compute in bfloat16 on CUDA GPUs (in float16 on those without it), and, in
        training only, on CPUs with instructions for it. Weights stay in float32.
    dropout: share of hidden states and embeddings dropped in training; null for the value in the
        encoder's config.
    attention_dropout: share of attention probabilities dropped in training; null for the value in
        the encoder's config. 0 lets torch fuse attention, which saves much time and memory on a
        CPU.
    gradient_checkpointing: in training, keep only the pieces of a batch and compute its hidden
        states again in the backward pass. This takes longer, but `max_batch_pieces` then bounds
        memory in training as it does in prediction.
    device: a torch device such as "cpu" or "cuda:1", or "auto": the first available of CUDA, MPS
        and CPU.
    threads: threads of the ONNX engine; null for OMP_NUM_THREADS if it is set, 1 in a worker
        process of `n_process`, and all cores otherwise. torch has its own settings.
    frozen: do not change the weights; updates train the heads only.
    learn_rate_scale: factor on the learning rate of `[training.optimizer]` for the encoder.
    layer_decay: a further factor for each layer below the uppermost.
    """
    settings = EncoderSettings(
        name=name,
        engine=engine,
        window=window,
        overlap=overlap,
        max_batch_pieces=max_batch_pieces,
        pooling=pooling,
        doc_pooling=doc_pooling,
        pieces_from=pieces_from,
        layer=layer,
        mixed_precision=mixed_precision,
        dropout=dropout,
        attention_dropout=attention_dropout,
        gradient_checkpointing=gradient_checkpointing,
        device=device,
        threads=threads,
        frozen=frozen,
        learn_rate_scale=learn_rate_scale,
        layer_decay=layer_decay,
    )
    return Model(
        "distil_transformer",
        forward,
        init=init,
        dims={"nO": None},
        # Called by nlp.replace_listeners.
        attrs={"replace_listener": _replace, "replace_listener_cfg": _replace_config}
        if doc_pooling is not None
        else {},
        shims=[EncoderShim(settings)],
    )


def _replace(
    model: Model[InT, OutT], listener: DistilListener, tok2vec: Any = None
) -> Model[InT, OutT]:
    """Leave out the vectors of docs in an encoder that takes the place of a listener to tokens."""
    if not reads_docs(listener):
        encoder = get_encoder(model)
        encoder.settings = replace(encoder.settings, doc_pooling=None)
        model.attrs.clear()
        return model
    return return_docs(model)


def _replace_config(config: dict[str, Any], listener: dict[str, Any]) -> dict[str, Any]:
    """Do the same in the config of the encoder's model."""
    return config if listener.get("docs") else {**config, "doc_pooling": None}


def return_docs(model: Model[InT, OutT]) -> Model[InT, OutT]:
    """Let the model of an encoder return the vectors of docs too, after the ones of their tokens.

    All other code, such as `spacy pretrain`, expects vectors of tokens alone.
    """
    model.attrs[_DOCS] = True
    return model


def forward(model: Model[InT, OutT], docs: InT, is_train: bool) -> tuple[OutT, Callable]:
    encoder = get_encoder(model)
    with_docs = _DOCS in model.attrs
    if not is_train or not encoder.is_trainable:
        return encoder.predict_docs(docs, model.ops, with_docs=with_docs), no_gradient
    tokvecs, backprop = encoder.begin_update_docs(docs, model.ops, with_docs=with_docs)
    return tokvecs, partial(_backprop, model, backprop)


def init(model: Model[InT, OutT], X: InT | None = None, Y: OutT | None = None) -> None:
    encoder = get_encoder(model)
    encoder.load_pretrained()
    model.set_dim("nO", encoder.width, force=True)


def _backprop(model: Model[InT, OutT], backprop: Callable, d_tokvecs: OutT) -> InT:
    backprop(model.ops.xp.concatenate(d_tokvecs) if d_tokvecs else model.ops.alloc2f(0, 0))
    return []
