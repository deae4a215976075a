"""Small pipelines of spacy-curated-transformers. Import this where the package is installed."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import curated_tokenizers
import numpy as np
import spacy
from curated_tokenizers import ByteBPEProcessor, SentencePieceProcessor, WordPieceProcessor
from spacy.language import Language
from spacy.training import Example
from spacy.util import fix_random_seed
from spacy_curated_transformers import tokenization
from spacy_curated_transformers.pipeline import transformer
from thinc.api import Model
from tokenizers import ByteLevelBPETokenizer

from tests.util import SENTENCES, build_tokenizer, head_config, make_examples

PACKAGE = "spacy-curated-transformers"
# 1,000 pieces, with the normalizer of XLM-R.
SENTENCEPIECE = Path(curated_tokenizers.__file__).parent / "tests" / "toy.model"
SHAPE = {
    "hidden_width": 32,
    "intermediate_width": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}
# The unknown piece of SENTENCEPIECE is number 0.
PADDING = {"padding_idx": 1050}
# Encoder, its piece encoder, and settings of the encoder.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertTransformer", "BertWordpieceEncoder", {}),
    "plain": ("BertTransformer", "WordpieceEncoder", {"hidden_act": "relu"}),
    "characters": ("BertTransformer", "CharEncoder", {"hidden_act": "gelu_new"}),
    "roberta": ("RobertaTransformer", "ByteBpeEncoder", {}),
    "xlmr": ("XlmrTransformer", "XlmrSentencepieceEncoder", {}),
    "camembert": ("CamembertTransformer", "CamembertSentencepieceEncoder", {}),
    "albert": (
        "AlbertTransformer",
        "SentencepieceEncoder",
        {
            "embedding_width": 16,
            "num_hidden_layers": 4,
            "num_hidden_groups": 2,
            "padding_idx": 1050,
        },
    ),
    "square": (
        "AlbertTransformer",
        "SentencepieceEncoder",
        {"embedding_width": 32, **PADDING},
    ),
}
VOCAB_SIZE = 1100
# Piece encoders read these in different ways: marks, full-width letters, signs of several scripts,
# white space, control characters, emoji, special pieces, capital letters with two small forms.
ODD_TEXTS = (
    "",
    "   ",
    "\n\n \t",
    "Ann cannot go; don't they? It's O'Neil's, we'll see.",
    "Ann  visited\n\nRome   in spring. ",
    "[SEP] <s> </s> <unk> [UNK] [CLS] <mask> ▁ a▁ ▁a ▁▁",
    "a" * 300,
    "unbelievable" * 20 + "☃" + "y" * 10,
    "100₿ ₿100 €5 5€ ☃snow☃man",
    "ΟΔΥΣΣΕΥΣ ΑΣ. Σ ΑΣΑ İstanbul IŞIK Straße ǅ",
    "Zoe\u0308 cafe\u0301 a\u0327\u0301 x\u0345 naïve façade",
    "東京と北京は大きい都市です。 汉字 한국어",
    "👍🏽 👩‍👩‍👧 🙂🙂 🇩🇪",
    "\x00 \x07 a\x00b \u200b soft\u00adhyphen \u00a0 \u2028 \ufeff \ue000",
    "ﬁne ½ ① ﬀ Ⅷ ㎏ … “quoted” ‰",
    "אבג العربية हिन्दी ไทย",
)


def wordpiece(
    *, bert: bool = True, lowercase: bool = True, strip_accents: bool = True
) -> Model[Any, Any]:
    vocab = build_tokenizer("bert").get_vocab()
    # Not of the tokenizer of the tests alone: single characters, at the begin of a word and inside.
    characters = {c for text in SENTENCES for c in text.lower() if not c.isspace()}
    characters |= {c for each in characters for c in unicodedata.normalize("NFD", each)}
    pieces = sorted(vocab, key=vocab.__getitem__)
    for piece in sorted(characters | {f"##{c}" for c in characters}):
        if piece not in vocab:
            pieces.append(piece)
    build = "build_bert_wordpiece_encoder_v1" if bert else "build_wordpiece_encoder_v1"
    encoder = getattr(tokenization, build)()
    encoder.attrs["wordpiece_processor"] = WordPieceProcessor(pieces)
    encoder.attrs["lowercase"] = lowercase
    encoder.attrs["strip_accents"] = strip_accents
    return encoder


def byte_bpe() -> Model[Any, Any]:
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer.train_from_iterator(
        SENTENCES, vocab_size=500, special_tokens=special, show_progress=False
    )
    model = json.loads(trainer._tokenizer.to_str())["model"]
    encoder = tokenization.build_byte_bpe_encoder_v1()
    merges = [tuple(merge) for merge in model["merges"]]
    encoder.attrs["byte_bpe_processor"] = ByteBPEProcessor(model["vocab"], merges)
    return encoder


def characters() -> Model[Any, Any]:
    encoder = tokenization.build_char_encoder_v1()
    known = sorted({c for text in SENTENCES for c in unicodedata.normalize("NFKC", text)})
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *known]
    encoder.attrs["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    return encoder


def sentencepiece(kind: str = "") -> Model[Any, Any]:
    encoder = getattr(tokenization, f"build_{kind}sentencepiece_encoder_v1")()
    processor = SentencePieceProcessor.from_file(str(SENTENCEPIECE))
    encoder.get_ref("encoder").attrs["sentencepiece_processor"] = processor
    return encoder


PIECES: dict[str, Callable[[], Model[Any, Any]]] = {
    "BertWordpieceEncoder": wordpiece,
    "WordpieceEncoder": lambda: wordpiece(bert=False),
    "CharEncoder": characters,
    "ByteBpeEncoder": byte_bpe,
    "SentencepieceEncoder": sentencepiece,
    "XlmrSentencepieceEncoder": lambda: sentencepiece("xlmr_"),
    "CamembertSentencepieceEncoder": lambda: sentencepiece("camembert_"),
}


def listener(pooling: str = "mean", kind: str = "LastTransformerLayer", **settings: Any) -> Any:
    return {
        "@architectures": f"{PACKAGE}.{kind}Listener.v1",
        "pooling": {"@layers": f"reduce_{pooling}.v1"},
        "width": 32,
        "grad_factor": 1.0,
        **settings,
    }


def transformer_block(kind: str, *, stride: int, window: int, **settings: Any) -> dict[str, Any]:
    encoder, pieces, own = KINDS[kind]
    return {
        "@architectures": f"{PACKAGE}.{encoder}.v1",
        "vocab_size": VOCAB_SIZE,
        **SHAPE,
        **own,
        **settings,
        "piece_encoder": {"@architectures": f"{PACKAGE}.{pieces}.v1"},
        "with_spans": {
            "@architectures": f"{PACKAGE}.WithStridedSpans.v1",
            "stride": stride,
            "window": window,
        },
    }


def add_curated(
    nlp: Language,
    kind: str,
    *,
    name: str = "transformer",
    stride: int = 104,
    window: int = 144,
    component: Mapping[str, Any] = {},
    **settings: Any,
) -> None:
    """Add a transformer component with a random encoder, whose piece encoder has a vocabulary.

    component: settings of the component; settings: of its encoder.
    """
    fix_random_seed(0)
    block = transformer_block(kind, stride=stride, window=window, **settings)
    pipe: Any = nlp.add_pipe("curated_transformer", name=name, config={"model": block, **component})
    fill_pieces(pipe.model.get_ref("piece_encoder"), KINDS[kind][1])


def fill_pieces(encoder: Model, kind: str) -> None:
    """Give a piece encoder of the kind its vocabulary."""
    filled = PIECES[kind]()
    if filled.has_ref("encoder"):
        encoder, filled = encoder.get_ref("encoder"), filled.get_ref("encoder")
    encoder.attrs.update(filled.attrs)


def patched_loss() -> Any:
    """With NumPy 2.4, the package cannot report a loss: it makes a number of an array of one."""
    return patch.object(transformer, "float", np.sum, create=True)


def train(
    nlp: Any, steps: int = 30, learn_rate: float = 5e-3, examples: list[Example] | None = None
) -> Any:
    """A few steps: enough for heads that say different things of different tokens."""
    fix_random_seed(0)
    examples = examples or make_examples(nlp)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = learn_rate
    with patched_loss():
        for _ in range(steps):
            nlp.update(examples, sgd=optimizer)
    return nlp


def make_curated(
    kind: str = "bert", heads: Mapping[str, str] | None = None, lang: str = "xx", **settings: Any
) -> Any:
    """A trained pipeline. heads: pooling of each pipe; settings: of `add_curated`."""
    nlp = spacy.blank(lang)
    add_curated(nlp, kind, **settings)
    for pipe, pooling in (heads or dict.fromkeys(("tagger", "ner", "textcat"), "mean")).items():
        nlp.add_pipe(pipe, config=head_config(pipe, listener(pooling)))
    return train(nlp)
