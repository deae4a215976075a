"""The architecture `spacy-distil.DistilTransformer.v1`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from spacy.tokens import Doc
from thinc.api import Model
from thinc.types import Floats2d

from spacy_distil.component.listener import no_gradient
from spacy_distil.component.shim import EncoderSettings, EncoderShim, get_encoder
from spacy_distil.encoding.pooling import PoolingName
from spacy_distil.engines.files import EngineName

InT = list[Doc]
OutT = list[Floats2d]


def DistilTransformer(
    name: str,
    engine: EngineName = "torch",
    window: int | None = None,
    overlap: int = 32,
    max_batch_pieces: int | None = None,
    pooling: PoolingName = "mean",
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
    """A transformer encoder as a token-to-vector layer: one (n_tokens, width) array per doc.

    It is the model of a `distil_transformer` component, and can stand inside any pipe that takes a
    `tok2vec`.

    name: directory or hub name of a Hugging Face encoder, which initialization loads.
    engine: "torch" trains and predicts; "onnx" predicts, on the CPU and without torch, and is what
        `spacy distil quantize` makes of a trained pipeline.
    window: most pieces encoded together, special ones included; null for as many as the encoder
        takes. A longer doc is split into several windows between tokens; nothing is truncated.
    overlap: pieces that neighbouring windows of a long doc share; `pooling` joins their vectors.
    max_batch_pieces: most padded pieces in one forward, which bounds its memory in prediction; the
        vectors of all docs of a batch come on top. Null for what suits the engine and its device.
    pooling: the vector of a token is the "mean" of its pieces' vectors, that of the "first" or the
        "last" of them, their "sum", or their "max", number by number. In an overlap the vectors
        that a piece has in both windows count.
    layer: whose output is used, 1 being the lowest; null for the last. Those above it are neither
        loaded nor saved. The norm that some families put behind their last layer comes behind it.
    mixed_precision: bfloat16 on CUDA GPUs (float16 on those without it), and, in training alone, on
        CPUs that have instructions for it. Weights stay in float32.
    dropout: share of hidden states and embeddings dropped in training; null for what the encoder's
        config says.
    attention_dropout: share of attention probabilities dropped in training; null for what the
        encoder's config says. 0 lets torch fuse attention: far less time and memory on a CPU.
    gradient_checkpointing: in training, keep the pieces of a batch alone and compute its hidden
        states again in the backward pass. That takes longer, and then
        `max_batch_pieces` bounds memory in training as it does in prediction.
    device: "auto" (CUDA, else MPS, else CPU), or a torch device such as "cpu" or "cuda:1".
    threads: of the ONNX engine; null for what OMP_NUM_THREADS says, else 1 in a worker process of
        `n_process`, else as many as there are cores. torch has settings of its own.
    frozen: use the weights as they are; updates train the heads alone.
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
        shims=[EncoderShim(settings)],
    )


def forward(model: Model[InT, OutT], docs: InT, is_train: bool) -> tuple[OutT, Callable]:
    encoder = get_encoder(model)
    if not is_train or not encoder.is_trainable:
        return encoder.predict_docs(docs, model.ops), no_gradient
    tokvecs, backprop = encoder.begin_update_docs(docs, model.ops)
    return tokvecs, partial(_backprop, model, backprop)


def init(model: Model[InT, OutT], X: InT | None = None, Y: OutT | None = None) -> None:
    encoder = get_encoder(model)
    encoder.load_pretrained()
    model.set_dim("nO", encoder.width, force=True)


def _backprop(model: Model[InT, OutT], backprop: Callable, d_tokvecs: OutT) -> InT:
    backprop(model.ops.xp.concatenate(d_tokvecs) if d_tokvecs else model.ops.alloc2f(0, 0))
    return []
