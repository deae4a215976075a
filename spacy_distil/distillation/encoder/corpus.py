"""The corpus as training sees it: blocks that are tokenized once and then read from shards."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from wasabi import msg

from spacy_distil.distillation.encoder.building import COUNTS, CorpusPlan, build
from spacy_distil.distillation.encoder.shards import Shards
from spacy_distil.errors import ConfigError, CorpusError, DamagedError
from spacy_distil.runs.digests import check_directory
from spacy_distil.runs.files import STALE_AFTER, remove_unfinished
from spacy_distil.tables import megabytes
from spacy_distil.text import plain_text

if TYPE_CHECKING:
    from spacy_distil.distillation.encoder.config import CorpusSettings
    from spacy_distil.students.teachers import Teacher

# Part of the fingerprint. Raise it when a change of reading, packing or shards changes the blocks.
FORMAT = 3


class Blocks:
    """Some blocks of a corpus, read from its shards on demand.

    shards: of the whole corpus.
    rows: (n,) int64, the rows of these blocks, in order.
    """

    def __init__(self, shards: Shards, rows: np.ndarray) -> None:
        self.shards = shards
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """Numbers of pieces of some blocks, without reading them: (n,) int64."""
        return self.shards.lengths(self._rows(places))

    def __getitem__(self, places: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Read some blocks, in any order: ids of pieces, (length,) uint16 or int32 each."""
        rows = self._rows(places)
        lengths = self.shards.lengths(rows)
        read = self.shards.read(rows)
        return [row[:length] for row, length in zip(read, lengths, strict=True)]

    def _rows(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.rows[np.asarray(places, dtype=np.int64)]


@dataclass(frozen=True)
class Source:
    """The origin and the size of the blocks of a corpus, as the model card reports them.

    files: names and sizes in bytes.
    blocks, pieces: how many there are.
    fingerprint: of files, tokenizer and packing.
    """

    files: list[tuple[str, int]]
    blocks: int
    pieces: int
    fingerprint: str


@dataclass(frozen=True)
class Corpus:
    """Blocks to train on and held-out blocks.

    held_out: may be empty.
    sources: by "train" and, if the corpus has its own held-out files, "dev".
    """

    train: Blocks
    held_out: Blocks
    sources: dict[str, Source]


def plan_corpus(settings: CorpusSettings, teacher: Teacher) -> dict[str, CorpusPlan]:
    """Find the files of "train" and, if the settings name some, of "dev". Nothing is written."""
    if settings.block_size > teacher.longest_block:
        raise ConfigError(
            f"corpus.block_size = {settings.block_size}: the teacher has positions for blocks of "
            f"at most {teacher.longest_block} pieces"
        )
    parts = {"train": (settings.train, settings.max_blocks)}
    if settings.dev:
        parts["dev"] = (settings.dev, settings.max_dev_blocks)
    plans = {}
    for name, (paths, limit) in parts.items():
        setting = f"corpus.{name}"
        files = plain_text.find_files(paths, setting=setting)
        if not files:
            raise CorpusError(
                f"{setting} is empty: name the text to distil on, in the config or with "
                f"--{setting} PATH ({', '.join(plain_text.SUFFIXES)}, or a directory of such files)"
            )
        fingerprint = _fingerprint(
            files, teacher, settings.block_size, limit, settings.txt_documents
        )
        plans[name] = CorpusPlan(setting, files, limit, fingerprint, settings.txt_documents)
    return plans


def load_corpus(
    plans: Mapping[str, CorpusPlan],
    settings: CorpusSettings,
    teacher: Teacher,
    *,
    cache: Path,
    checks: bool = True,
) -> Corpus:
    """Read, tokenize and pack the files, unless the cache has their blocks.

    cache: directory with a subdirectory for each corpus. Several processes may call this at once,
        but each would do all the work: let one go first.
    checks: whether to check the digests of the blocks, which reads all of them. One of
        the processes on a machine does it for all.
    Raises CorpusError if there is no text, or the cache is damaged.
    """
    remove_unfinished(cache, older_than=STALE_AFTER)
    loaded = {name: _load(plan, settings, teacher, cache, checks) for name, plan in plans.items()}
    sources = {name: source for name, (_, source) in loaded.items()}
    data, source = loaded["train"]
    rows = np.arange(source.blocks)
    if "dev" in loaded:
        dev, dev_source = loaded["dev"]
        return Corpus(Blocks(data, rows), Blocks(dev, np.arange(dev_source.blocks)), sources)
    held_out = _held_out_rows(source.blocks, settings.dev_fraction, settings.max_dev_blocks)
    return Corpus(Blocks(data, np.setdiff1d(rows, held_out)), Blocks(data, held_out), sources)


def _held_out_rows(n_blocks: int, fraction: float, limit: int | None) -> np.ndarray:
    """Choose evenly spaced blocks, so that each part of a sorted corpus is held out in proportion.

    fraction: of the blocks; 0 chooses none, any other fraction at least one.
    """
    if fraction == 0:
        return np.arange(0)
    count = max(1, round(n_blocks * fraction))
    count = count if limit is None else min(count, limit)
    if count >= n_blocks:
        raise CorpusError(
            f"corpus.train makes {n_blocks} blocks, and corpus.dev_fraction = {fraction} holds "
            f"{count} of them out: nothing is left to train on. Give more text, a smaller "
            f"corpus.block_size, or set corpus.dev_fraction to 0"
        )
    return (np.arange(count) * n_blocks + n_blocks // 2) // count


def _load(
    plan: CorpusPlan, settings: CorpusSettings, teacher: Teacher, cache: Path, checks: bool
) -> tuple[Shards, Source]:
    directory = cache / plan.fingerprint
    if not (directory / COUNTS).exists():
        build(plan, directory, tokenizer=teacher.tokenizer, block_size=settings.block_size)
    if checks:
        _check(plan, directory)
    counts = json.loads((directory / COUNTS).read_text(encoding="utf-8"))
    files = [(str(path), plain_text.file_size(path)) for path in plan.files]
    shards = Shards(directory, counts["blocks"], counts["pieces"])
    return shards, Source(files, counts["blocks"], counts["pieces"], plan.fingerprint)


def _check(plan: CorpusPlan, directory: Path) -> None:
    """Raise `CorpusError` if the blocks have changed since they were built.

    Training reads them in random order, so it would soon have hashed them all, in its first steps.
    """
    started = time.perf_counter()
    try:
        check_directory(directory)
        n_bytes = sum(path.stat().st_size for path in directory.iterdir())
    except (DamagedError, OSError) as error:
        raise CorpusError(
            f"{directory} is missing or damaged ({error}). Delete it, and the next run tokenizes "
            "the corpus again"
        ) from error
    seconds = time.perf_counter() - started
    msg.info(f"{plan.setting}: checked {megabytes(n_bytes)} of blocks in {seconds:.1f} s")


def _fingerprint(
    files: Sequence[Path],
    teacher: Teacher,
    block_size: int,
    limit: int | None,
    txt_documents: str,
) -> str:
    """Hash contents, not names and times: a copied or freshly checked-out corpus is the same."""
    tokenizer = teacher.tokenizer
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    settings = (FORMAT, block_size, limit, txt_documents, *ids)
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=12)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for file in files:
        digest.update(f"{file.suffix} {plain_text.file_size(file)}".encode())
        try:
            with file.open("rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise CorpusError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
