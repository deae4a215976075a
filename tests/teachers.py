"""Tiny teachers of each family, saved as ordinary model directories, and text for them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from spacy_distil.engines.files import PADDED_POSITIONS
from spacy_distil.students.families import FAMILIES

WORDS = [f"{onset}{rest}" for onset in "bdfgklmnprst" for rest in ("a", "e", "i", "o", "u")]
BERT_PIECES = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
ROBERTA_PIECES = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
# Special pieces of each family, in the order of their ids.
SPECIAL = {
    family: ROBERTA_PIECES if family in PADDED_POSITIONS else BERT_PIECES for family in FAMILIES
}


def tiny_config(family: str, *, vocab_size: int, layers: int = 4) -> PretrainedConfig:
    """Make a config of width 16, with room for blocks of 32 pieces."""
    if family == "distilbert":
        return AutoConfig.for_model(
            family,
            vocab_size=vocab_size,
            dim=16,
            n_layers=layers,
            n_heads=2,
            hidden_dim=32,
            max_position_embeddings=32,
        )
    special: dict[str, int] = {}
    if SPECIAL[family] is ROBERTA_PIECES:
        special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    elif family in ("electra", "albert"):
        special = {"embedding_size": 8}  # narrower than what follows
    if family == "albert":
        special["num_hidden_groups"] = min(2, layers)  # layers of a group are one module
    return AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=34 if SPECIAL[family] is ROBERTA_PIECES else 32,
        type_vocab_size=1 if family in ("bert", "roberta") else 2,
        **special,
    )


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words. It truncates and pads to 8, as saved tokenizers may."""
    special = SPECIAL[family]
    pieces = [*special.values(), *WORDS]
    if special is ROBERTA_PIECES:
        pieces.append(pieces.pop(4))  # the mask piece comes last there
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token=special["unk"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.enable_truncation(8)
    backend.enable_padding(length=8, pad_id=vocab[special["pad"]], pad_token=special["pad"])
    names = {f"{role}_token": piece for role, piece in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def write_teacher(path: Path, family: str, *, head: bool, layers: int = 4) -> None:
    """Save a teacher of `tiny_config` and `tiny_tokenizer`, with a masked-LM head or without."""
    torch.manual_seed(7)
    tokenizer = tiny_tokenizer(family)
    kind = AutoModelForMaskedLM if head else AutoModel
    model = kind.from_config(tiny_config(family, vocab_size=len(tokenizer), layers=layers))
    for parameter in model.parameters():  # initial weights hardly change hidden states
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def log_of(output: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Read the log of a run: entries of one kind, "train" or "held_out", or all."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line for line in lines if kind in (None, line["kind"])]


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a teacher once and return its directory. head: with a masked-LM head."""
    made: dict[tuple[str, bool], Path] = {}

    def make(family: str, *, head: bool) -> Path:
        if (family, head) not in made:
            path = tmp_path_factory.mktemp(f"{family}-{'head' if head else 'bare'}")
            write_teacher(path, family, head=head)
            made[family, head] = path
        return made[family, head]

    return make


def write_sample(path: Path) -> None:
    """Write about 3,000 words in 60 documents. Each word says much about the next."""
    rng = random.Random(3)
    documents = []
    for _ in range(60):
        place = rng.randrange(len(WORDS))
        words = []
        for _ in range(50):
            words.append(WORDS[place])
            place = (place + rng.choice([1, 1, 1, 7])) % len(WORDS)
        documents.append("\n".join([" ".join(words[:25]), " ".join(words[25:])]))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of `write_sample`."""
    path = tmp_path_factory.mktemp("text") / "sample.txt"
    write_sample(path)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: tiny models gain nothing from more, and sums are the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
