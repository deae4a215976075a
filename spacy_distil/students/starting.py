"""Student encoders that start from the trained encoder of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from spacy_distil.component.shim import EncoderShim
from spacy_distil.engines.pretrained import save_encoder
from spacy_distil.runs.files import atomic_directory, scratch_directory
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.making import make_student
from spacy_distil.students.sample_text import count_pieces
from spacy_distil.students.shapes import choose_shape
from spacy_distil.students.teachers import load_teacher

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
    share_layers: bool = False,
    embedding_size: int | None = None,
    texts: Iterable[str] = (),
) -> None:
    """Save a student encoder that has some of the layers of a trained encoder.

    encoder: runs on torch and is of one of the `FAMILIES`.
    directory: becomes a Hugging Face model directory with the encoder's tokenizer.
    layers, n_layers: which layers and how many. None is half of them. See `choose_layers`.
    share_layers, embedding_size: see `choose_shape`.
    texts: to count pieces in for factorized embeddings. Up to N_COUNTED_TEXTS are read.
    """
    with scratch_directory(directory) as scratch, atomic_directory(directory) as new:
        encoder.to_disk(scratch / "teacher")
        teacher = load_teacher(str(scratch / "teacher"))
        shape = choose_shape(
            teacher.model.config,
            layers,
            n_layers,
            share_layers=share_layers,
            embedding_size=embedding_size,
        )
        # The tokenizer class of a family would change the tokenizer to its own defaults, such as
        # lower case. The general class saves it as it is.
        pieces = Tokenizer.from_str(encoder.loaded.tokenizer.to_str())
        counts = None
        if embedding_size is not None:
            counted = pieces.encode_batch([*islice(texts, N_COUNTED_TEXTS)])
            ids = (np.array(each.ids, dtype=np.int64) for each in counted)
            counts = count_pieces(ids, int(teacher.model.config.vocab_size))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=pieces,
            **teacher.tokenizer.special_tokens_map,
        )
        save_encoder(make_student(teacher, shape, counts=counts), tokenizer, new)
