"""Sample a corpus: blocks to measure importance on, and pieces per word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spacy_distil.errors import CorpusError
from spacy_distil.text.packing import pack, tokenize
from spacy_distil.text.plain_text import Part, TxtDocuments, TxtFiles, find_files, read_parts

if TYPE_CHECKING:
    from spacy_distil.students.teachers import Teacher

# Pieces in a block, and blocks in a sample.
BLOCK_SIZE, N_BLOCKS = 128, 64
# Blocks to count pieces in.
N_COUNTED_BLOCKS = 2000
# Characters to read for a block: more than a block has in any language.
BLOCK_CHARACTERS = 16 * BLOCK_SIZE
# Characters to read for counting pieces per word.
_COUNTED_CHARACTERS = 200_000


def read_blocks(
    path: Path,
    teacher: Teacher,
    *,
    setting: str,
    n_blocks: int = N_BLOCKS,
    txt_documents: TxtDocuments = "auto",
    log: Callable[[str], object] = lambda message: None,
) -> list[np.ndarray]:
    """Read blocks of up to 128 pieces from the start of each file of a corpus, as many from each.

    path: file or directory, in the formats of `text.plain_text`.
    setting: name of the setting that gives the path, for errors.
    txt_documents: how .txt files are divided into documents. log: is told how they were.
    RETURNS: up to `n_blocks` blocks of piece ids, (n_pieces,) int32 each.
    Raises CorpusError if there is no text.
    """
    files = find_files([path], setting=setting)
    txt = TxtFiles(txt_documents)
    blocks: list[np.ndarray] = []
    for number, file in enumerate(files):
        # Later files make up for short ones.
        share = -(-(n_blocks - len(blocks)) // (len(files) - number))
        parts = _read_start([file], share * BLOCK_CHARACTERS, txt)
        blocks += make_blocks(parts, teacher, n_blocks=share)
        if len(blocks) >= n_blocks:
            break
    if not blocks:
        raise CorpusError(f"{setting}: no text in {path}")
    txt.tell(log)
    return blocks


def make_blocks(
    parts: Iterable[Part], teacher: Teacher, *, n_blocks: int = N_BLOCKS
) -> list[np.ndarray]:
    """Make blocks of up to 128 pieces of text: `n_blocks` of (n_pieces,) int32, or fewer."""
    tokenizer = teacher.tokenizer
    packed = pack(
        tokenize(parts, tokenizer),
        block_size=min(BLOCK_SIZE, teacher.longest_block),
        first=int(tokenizer.cls_token_id),
        last=int(tokenizer.sep_token_id),
    )
    return [np.array(block, dtype=np.int32) for block in islice(packed, n_blocks)]


def count_pieces(blocks: Iterable[np.ndarray], n_pieces: int) -> np.ndarray:
    """Count how often each piece occurs in blocks of piece ids: (n_pieces,) int64."""
    counts = np.zeros(n_pieces, dtype=np.int64)
    for block in blocks:
        counts += np.bincount(block, minlength=n_pieces)
    return counts


def pieces_per_word(
    path: Path | None,
    teacher: Teacher,
    *,
    setting: str,
    txt_documents: TxtDocuments = "auto",
) -> float:
    """Count how many pieces the teacher's tokenizer makes of a word, on average.

    path: corpus, of which the start is read. `None` takes spaCy's English example sentences.
    setting: name of the setting that gives the path, for errors.
    txt_documents: how .txt files are divided into documents.
    Raises CorpusError if there is no text.
    """
    import spacy

    if path is None:
        from spacy.lang.en.examples import sentences

        parts = [Part(text, ends=True) for text in sentences]
    else:
        files, txt = find_files([path], setting=setting), TxtFiles(txt_documents)
        parts = list(_read_start(files, _COUNTED_CHARACTERS, txt))
    nlp = spacy.blank("xx")
    n_words = sum(not token.is_space for part in parts for token in nlp.make_doc(part.text))
    if n_words == 0:
        raise CorpusError(f"{setting}: no text in {path}")
    return sum(len(pieces) for pieces, _ in tokenize(parts, teacher.tokenizer)) / n_words


def read_corpus(
    path: Path,
    *,
    setting: str,
    txt_documents: TxtDocuments = "auto",
    log: Callable[[str], object] = lambda message: None,
) -> Iterator[str]:
    """Read all texts of a corpus, long ones in parts.

    path, setting, txt_documents, log: as in `read_blocks`.
    """
    files, txt = find_files([path], setting=setting), TxtFiles(txt_documents)
    for part in _read_files(files, txt):
        yield part.text
    txt.tell(log)


def _read_start(files: Iterable[Path], n_characters: int, txt: TxtFiles) -> Iterator[Part]:
    """Read documents from the start of files, until they have about `n_characters`."""
    size = 0
    for part in _read_files(files, txt):
        yield part
        size += len(part.text)
        if size > n_characters:
            return


def _read_files(files: Iterable[Path], txt: TxtFiles) -> Iterator[Part]:
    """Read the documents of all files."""
    return chain.from_iterable(read_parts(file, txt) for file in files)
