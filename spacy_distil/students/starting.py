"""Student encoders that start from the trained encoder of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from spacy_distil.component.shim import EncoderShim
from spacy_distil.engines.pretrained import save_encoder
from spacy_distil.runs.files import atomic_directory, scratch_directory
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.layer_choice import choose_layers
from spacy_distil.students.making import make_student
from spacy_distil.students.teachers import load_teacher
from spacy_distil.students.vocabulary import PrunedVocabulary, VocabularySettings, prune_teacher
from spacy_distil.students.vocabulary.kinds import Text
from spacy_distil.students.vocabulary.settings import WHOLE


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
    texts: Iterable[Text] = (),
    vocabulary: VocabularySettings = WHOLE,
) -> PrunedVocabulary | None:
    """Save a student encoder that has some of the layers of a trained encoder.

    encoder: runs on torch and is of one of the `FAMILIES`.
    directory: becomes a Hugging Face model directory with the encoder's tokenizer.
    layers, n_layers: which layers and how many. None is half of them. See `choose_layers`.
    texts, vocabulary: which pieces it has, and the texts that they are counted in.
    RETURNS: the smaller vocabulary, or None if it is whole.
    """
    with scratch_directory(directory) as scratch, atomic_directory(directory) as new:
        encoder.to_disk(scratch / "teacher")
        teacher = load_teacher(str(scratch / "teacher"))
        chosen = choose_layers(layers, n_layers, available=teacher.n_layers)
        # The tokenizer class of a family would change the tokenizer to its own defaults, such as
        # lower case. The general class saves it as it is.
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(encoder.loaded.tokenizer.to_str()),
            **teacher.tokenizer.special_tokens_map,
        )
        teacher = replace(teacher, tokenizer=tokenizer)
        pruned = None
        if vocabulary.is_pruned:
            teacher, pruned = prune_teacher(teacher, texts, vocabulary)
        save_encoder(make_student(teacher, chosen), teacher.tokenizer, new)
        return pruned


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
