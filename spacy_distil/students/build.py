"""Build a student of any shape and compare its costs with its teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spacy_distil.engines.pretrained import save_encoder
from spacy_distil.errors import ConfigError
from spacy_distil.runs.files import atomic_directory
from spacy_distil.runs.outputs import check_output
from spacy_distil.students.card import cut_student_card
from spacy_distil.students.costs import cost_table
from spacy_distil.students.importance import (
    Importance,
    importance_batches,
    measure_importance,
)
from spacy_distil.students.layer_choice import Layers
from spacy_distil.students.licence import find_licence
from spacy_distil.students.making import make_student
from spacy_distil.students.sample_text import (
    N_COUNTED_BLOCKS,
    count_pieces,
    pieces_per_word,
    read_blocks,
    read_corpus,
)
from spacy_distil.students.shapes import StudentShape, choose_shape
from spacy_distil.students.teachers import load_teacher
from spacy_distil.students.vocabulary import VocabularySettings, prune_teacher
from spacy_distil.tables import Table
from spacy_distil.text.plain_text import TxtDocuments

# Options of the command, for errors.
PREFIX, CORPUS, OUTPUT, PRUNE_VOCAB = "--", "--corpus", "--output", "--prune-vocab"


@dataclass(frozen=True)
class BuiltStudent:
    """A student, and how it compares with its teacher.

    shape: of the student, with the teacher's.
    model_type: family of the teacher.
    importance: of the teacher's parts; None if it was not measured.
    is_random: whether the weights are random, because some parts had to be left out and there was
        no text to choose them on.
    costs: parameters, size, operations and speed of both.
    pieces_per_word: of the teacher, on the corpus or on English example sentences.
    """

    shape: StudentShape
    model_type: str
    importance: Importance | None
    is_random: bool
    costs: Table
    pieces_per_word: float


def build_student(
    teacher: str,
    output: Path | None = None,
    *,
    layers: Layers = "first",
    n_layers: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
    width: int | None = None,
    share_layers: bool = False,
    embedding_size: int | None = None,
    prune_vocab: Path | None = None,
    vocab_size: int | None = None,
    min_count: int | None = None,
    corpus: Path | None = None,
    revision: str | None = None,
    threads: int | None = None,
    txt_documents: TxtDocuments = "auto",
    log: Callable[[str], object] = print,
) -> BuiltStudent:
    """Build a student, measure its costs and save it. It learns nothing here.

    teacher: directory or hub name of an encoder.
    output: directory for a Hugging Face model with a card; None saves nothing.
    layers, n_layers, heads, ffn, width, share_layers, embedding_size: shape of the student, see
        `choose_shape`.
    prune_vocab: file or directory of text; the student has the pieces that occur in it. None keeps
        all.
    vocab_size: number of pieces to keep with `prune_vocab`, the most frequent ones; None for all
        that occur `min_count` times, or once.
    corpus: file or directory of text to measure importance on, and to count pieces in for
        factorized embeddings. Needed to save a student with these, or with fewer heads, neurons or
        dimensions than the teacher.
    revision: branch, tag or commit on the hub.
    threads: of the CPU while speed is measured; None is torch's own choice.
    txt_documents: how .txt files of the corpus are divided into documents, see `TxtDocuments`.
    log: called with messages on the progress.
    Raises ConfigError, which names the options of `spacy distil student`, for a shape that cannot
    be, or an output that must not be written.
    """
    if output is not None:
        check_output(output, force=None)
    loaded = load_teacher(teacher, revision=revision)
    config = loaded.model.config
    _check_layers(layers, n_layers, available=loaded.n_layers)
    shape = choose_shape(
        config,
        layers,
        n_layers,
        heads=heads,
        ffn=ffn,
        width=width,
        share_layers=share_layers,
        embedding_size=embedding_size,
        prefix=PREFIX,
    )
    if output is not None and shape.cuts and corpus is None:
        raise ConfigError(
            f"{OUTPUT} {output}: the student is smaller than the teacher in "
            f"{', '.join(PREFIX + name for name in shape.cuts)}, and needs text to choose the "
            f"parts that it keeps. Name some with {CORPUS}"
        )
    vocabulary = VocabularySettings(
        size=vocab_size, min_count=min_count or (1 if prune_vocab and not vocab_size else None)
    )
    if vocabulary.is_pruned and prune_vocab is None:
        option = "vocab-size" if vocab_size else "min-count"
        raise ConfigError(
            f"{PREFIX}{option} {vocab_size or min_count} says which pieces to keep of the ones "
            f"that {PRUNE_VOCAB} counts: name text with that option, too"
        )
    if output is not None and embedding_size is not None and corpus is None:
        raise ConfigError(
            f"{PREFIX}embedding-size {embedding_size}: the embeddings keep what the most frequent "
            f"pieces need, and there is no text to count them in. Name some with {CORPUS}"
        )
    importance = counts = None
    if corpus is not None and embedding_size is not None:
        counted = read_blocks(
            corpus, loaded, setting=CORPUS, n_blocks=N_COUNTED_BLOCKS, txt_documents=txt_documents
        )
        counts = count_pieces(counted, int(config.vocab_size))
    if corpus is not None and shape.cuts:
        blocks = read_blocks(corpus, loaded, setting=CORPUS, txt_documents=txt_documents, log=log)
        log(f"Measuring importance on {len(blocks)} blocks of {corpus}")
        importance = measure_importance(loaded, importance_batches(blocks, loaded))
    cuts_blindly = bool(shape.cuts) and importance is None
    is_random = cuts_blindly or (embedding_size is not None and counts is None)
    torch.manual_seed(0)  # larger heads get new weights
    student = make_student(
        loaded,
        shape,
        importance,
        start="random" if is_random else "teacher",
        counts=counts,
    ).eval()
    words = pieces_per_word(corpus, loaded, setting=CORPUS, txt_documents=txt_documents)
    tokenizer = loaded.tokenizer
    if prune_vocab is not None:
        log(f"Counting the pieces of {prune_vocab}")
        texts = read_corpus(prune_vocab, setting=PRUNE_VOCAB, txt_documents=txt_documents)
        smaller, pruned = prune_teacher(replace(loaded, model=student), texts, vocabulary)
        student, tokenizer = smaller.model, smaller.tokenizer
        log(f"Vocabulary: {pruned.describe()}")
    costs = cost_table(loaded.model, student, pieces_per_word=words, threads=threads)
    if output is not None:
        card = cut_student_card(
            loaded,
            shape,
            licence=find_licence(teacher, revision=revision),
            n_parameters=student.num_parameters(),
            n_pieces=int(student.config.vocab_size),
        )
        n_bytes = sum(p.numel() * p.element_size() for p in student.parameters())
        with atomic_directory(output, needed=n_bytes) as directory:
            save_encoder(student, tokenizer, directory)
            (directory / "README.md").write_text(card, encoding="utf-8")
    return BuiltStudent(shape, config.model_type, importance, is_random, costs, words)


def _check_layers(layers: Layers, n_layers: int | None, *, available: int) -> None:
    """Raise ConfigError for a number of layers that the teacher does not have."""
    if n_layers is None:
        return
    if not 1 <= n_layers <= available:
        raise ConfigError(f"{PREFIX}layers {n_layers}: must be from 1 to the teacher's {available}")
    if layers == "all":
        raise ConfigError(
            f"{PREFIX}layers {n_layers} with {PREFIX}from all, which is all {available}. Leave out "
            f"one of the two"
        )
