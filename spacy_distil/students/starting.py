"""Student encoders that start from the trained encoder of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
import srsly
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from spacy_distil.component.shim import EncoderShim
from spacy_distil.engines.pretrained import save_encoder
from spacy_distil.runs.files import atomic_directory, scratch_directory
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.importance import importance_batches, measure_importance
from spacy_distil.students.making import make_student
from spacy_distil.students.sample_text import BLOCK_CHARACTERS, N_BLOCKS, make_blocks
from spacy_distil.students.shapes import choose_shape
from spacy_distil.students.teachers import load_teacher
from spacy_distil.students.vocabulary import PrunedVocabulary, VocabularySettings, prune_teacher
from spacy_distil.students.vocabulary.kinds import Text, read_kind
from spacy_distil.students.vocabulary.settings import WHOLE
from spacy_distil.text.plain_text import Part

# Names of the pieces for masked and for unknown text, which a config does not tell.
MASKS, UNKNOWNS = ("[MASK]", "<mask>"), ("[UNK]", "<unk>")

# Texts to count pieces in.
N_COUNTED_TEXTS = 5000


def family_obstacle(encoder: EncoderShim) -> str | None:
    """Say why the encoder's family does not let a student take its layers, or return None."""
    model_type = encoder.loaded.config["model_type"]
    if model_type in FAMILIES:
        return None
    return (
        f"the teacher's encoder is of type {model_type!r}; "
        f"layers can be taken from: {', '.join(FAMILIES)}"
    )


def save_student(
    encoder: EncoderShim,
    directory: Path,
    layers: Literal["first", "even"] | Sequence[int] = "first",
    n_layers: int | None = None,
    *,
    heads: int | None = None,
    ffn: int | None = None,
    width: int | None = None,
    share_layers: bool = False,
    embedding_size: int | None = None,
    texts: Iterable[Text] = (),
    vocabulary: VocabularySettings = WHOLE,
) -> PrunedVocabulary | None:
    """Save a student encoder that has some of the layers of a trained encoder.

    encoder: runs on torch and is of one of the `FAMILIES`.
    directory: becomes a Hugging Face model directory with the encoder's tokenizer.
    layers, n_layers: which layers and how many. None is half of them. See `choose_layers`.
    heads, ffn, width, share_layers, embedding_size: see `choose_shape`.
    vocabulary: which pieces it has.
    texts: to count pieces in, all for the vocabulary, and N_COUNTED_TEXTS for factorized
        embeddings. The importance of heads, neurons and dimensions is measured on the first ones.
    RETURNS: the smaller vocabulary, or None if it is whole.
    """
    with scratch_directory(directory) as scratch, atomic_directory(directory) as new:
        encoder.to_disk(scratch / "teacher")
        # The tokenizer class of a family would change the tokenizer to its own defaults, such as
        # lower case, or "[CLS]" where this one has "<s>". The general class saves it as it is.
        pieces = Tokenizer.from_str(encoder.loaded.tokenizer.to_str())
        roles = _special_pieces(encoder)
        if roles:
            general = {"tokenizer_class": PreTrainedTokenizerFast.__name__, **roles}
            srsly.write_json(scratch / "teacher" / "tokenizer_config.json", general)
        teacher = load_teacher(str(scratch / "teacher"))
        shape = choose_shape(
            teacher.model.config,
            layers,
            n_layers,
            heads=heads,
            ffn=ffn,
            width=width,
            share_layers=share_layers,
            embedding_size=embedding_size,
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=pieces, **teacher.tokenizer.special_tokens_map
        )
        teacher = replace(teacher, tokenizer=tokenizer)
        pruned, counts, importance = None, None, None
        if shape.cuts:
            first, texts = _first_texts(texts)
            blocks = make_blocks(first, teacher)
            importance = measure_importance(teacher, importance_batches(blocks, teacher))
        if vocabulary.is_pruned:
            teacher, pruned = prune_teacher(teacher, texts, vocabulary)
            counts = pruned.counts[pruned.kept_ids]
        elif embedding_size is not None:
            counts = read_kind(pieces.to_str()).count([*islice(texts, N_COUNTED_TEXTS)])
            n_more = int(teacher.model.config.vocab_size) - len(counts)
            counts = np.pad(counts, (0, n_more))
        torch.manual_seed(0)  # larger heads get new weights
        student = make_student(teacher, shape, importance, counts=counts)
        save_encoder(student, teacher.tokenizer, new)
        return pruned


def _first_texts(texts: Iterable[Text]) -> tuple[list[Part], Iterable[Text]]:
    """Take the first texts, in whole blocks' worth. RETURNS: them, and all texts."""
    rest, taken, size = iter(texts), [], 0
    for text in rest:
        taken.append(text)
        size += len(text) if isinstance(text, str) else sum(map(len, text))
        if size > N_BLOCKS * BLOCK_CHARACTERS:
            break
    parts = [Part(text if isinstance(text, str) else " ".join(text), True) for text in taken]
    return parts, chain(taken, rest)


def save_pruned(
    name: str, directory: Path, texts: Iterable[Text], vocabulary: VocabularySettings
) -> PrunedVocabulary:
    """Save an encoder with a smaller vocabulary.

    name: directory or hub name of an encoder of one of the `FAMILIES`.
    For the rest see `save_student`.
    """
    with atomic_directory(directory) as new:
        teacher, pruned = prune_teacher(load_teacher(name), texts, vocabulary)
        save_encoder(teacher.model, teacher.tokenizer, new)
        return pruned


def _special_pieces(encoder: EncoderShim) -> dict[str, str]:
    """Find the special pieces of an encoder by their roles. Empty if one cannot be told."""
    tokenizer = encoder.loaded.tokenizer
    vocabulary = tokenizer.read_vocabulary()
    pieces = {i: piece for piece, i in vocabulary.items()}
    ids = {
        "cls_token": next(iter(tokenizer.prefix), None),
        "sep_token": next(iter(tokenizer.suffix), None),
        "pad_token": encoder.loaded.config.get("pad_token_id"),
        "mask_token": next((vocabulary[p] for p in MASKS if p in vocabulary), None),
    }
    roles = {role: pieces[i] for role, i in ids.items() if i in pieces}
    unknown = next((piece for piece in UNKNOWNS if piece in vocabulary), None)
    if len(roles) < len(ids) or unknown is None:
        return {}
    return {**roles, "unk_token": unknown}
