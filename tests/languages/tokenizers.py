"""Small tokenizers of many scripts, trained on a few lines, and encoders that have them."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from spacy_distil.encoding import PieceTokenizer
from tests.languages.texts import LINES

SPECIAL = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SIZE = 700
# A directory with a real multilingual encoder, or just its tokenizer.json.
REAL = os.environ.get("SPACY_DISTIL_MULTILINGUAL", "")
# "uncased" lower-cases and strips accents.
KINDS = ("unigram", "bytes", "cased", "uncased")


def make_tokenizer(kind: str) -> Tokenizer:
    """Return a tokenizer of its own, for the caller to change."""
    if kind == "real":
        if not (Path(REAL) / "tokenizer.json").is_file() or not REAL:
            pytest.skip("SPACY_DISTIL_MULTILINGUAL names no directory with a tokenizer.json")
        return Tokenizer.from_file(str(Path(REAL) / "tokenizer.json"))
    return Tokenizer.from_str(_trained(kind))


@cache
def pieces_of(kind: str) -> PieceTokenizer:
    return PieceTokenizer(make_tokenizer(kind))


@cache
def _trained(kind: str) -> str:
    special = list(SPECIAL.values())
    tokenizer: Tokenizer
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=SIZE, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=SIZE,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        lower = kind == "uncased"
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=SIZE, special_tokens=special, show_progress=False
        )
    tokenizer.train_from_iterator(LINES, trainer)
    ends = {"[CLS]": tokenizer.token_to_id("[CLS]"), "[SEP]": tokenizer.token_to_id("[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=list(ends.items())
    )
    return str(tokenizer.to_str())


def write_encoder(directory: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a random encoder of BERT's form with one of the tokenizers."""
    tokenizer = make_tokenizer(kind)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=72,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(directory)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    fast.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "bert"
    return directory
