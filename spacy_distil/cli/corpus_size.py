"""The size of a corpus, as far as the schedule of a run needs it."""

from __future__ import annotations

from pathlib import Path

from spacy.tokens import DocBin

from spacy_distil.errors import CorpusError

# Of plain text, in UTF-8 and with spaces. A token of English or Chinese takes 5 bytes, a German one
# 6, a piece 4 or more.
BYTES_PER_WORD = 5
BYTES_PER_PIECE = 4


def count_tokens(path: Path) -> int:
    """Count the tokens of annotated documents.

    path: a `.spacy` file, or a directory with such files in it at any depth, as spaCy reads them.
    """
    files = sorted(path.rglob("*.spacy")) if path.is_dir() else [path]
    if not path.exists():
        raise CorpusError(f"--corpus: {path} does not exist (looked from {Path.cwd()}).")
    if not files or any(file.suffix != ".spacy" for file in files):
        raise CorpusError(
            f"--corpus: {path} is no .spacy file, or directory of them. 'spacy convert' makes "
            "such files from other formats."
        )
    n_tokens = sum(len(tokens) for file in files for tokens in _read(file).tokens)
    if not n_tokens:
        raise CorpusError(f"--corpus: {path} has no documents in it.")
    return n_tokens


def estimate_words(path: Path) -> int:
    """Estimate the tokens of text without annotation. path: as `[paths] text`."""
    return _count_bytes([path], option="--text") // BYTES_PER_WORD


def estimate_pieces(paths: list[Path]) -> int:
    """Estimate the pieces of text. paths: as `[corpus] train` of encoder distillation."""
    return _count_bytes(paths, option="--corpus") // BYTES_PER_PIECE


def _read(file: Path) -> DocBin:
    try:
        return DocBin().from_disk(file)
    except Exception as error:  # a damaged file can fail in zlib or msgpack
        raise CorpusError(
            f"--corpus: {file} is not a .spacy file, or is damaged: {type(error).__name__}: {error}"
        ) from error


def _count_bytes(paths: list[Path], *, option: str) -> int:
    from spacy_distil.text.plain_text import find_files, read_parts

    files = find_files(paths, setting=option)
    n_bytes = sum(len(part.text.encode("utf8")) for file in files for part in read_parts(file))
    if not n_bytes:
        raise CorpusError(f"{option}: {', '.join(map(str, paths))}: there is no text.")
    return n_bytes
