"""The corpus as training sees it: blocks that are tokenised once and then read from shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spacy_distil.distillation.encoder.building import COUNTS, Plan, build
from spacy_distil.distillation.encoder.shards import Shards
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.runs.files import STALE_AFTER, remove_unfinished
from spacy_distil.text import plain_text as reading

if TYPE_CHECKING:
    from spacy_distil.distillation.encoder.config import CorpusSettings
    from spacy_distil.students.teachers import Teacher

# Part of the fingerprint: raise it when reading, packing or shards change what comes out.
FORMAT = 2


class Blocks:
    """Some blocks of a corpus, read from its shards as they are asked for.

    shards: of the whole corpus.
    rows: (n,) int64, which of its rows belong here, in order.
    """

    def __init__(self, shards: Shards, rows: np.ndarray) -> None:
        self.shards = shards
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """How many pieces some blocks have, (n,) int64. Nothing is read for it."""
        return self.shards.lengths(self._rows(places))

    def __getitem__(self, places: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The pieces of some blocks, (length,) uint16 or int32 each. places: in any order."""
        rows = self._rows(places)
        lengths = self.shards.lengths(rows)
        read = self.shards.read(rows)
        return [row[:length] for row, length in zip(read, lengths, strict=True)]

    def _rows(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.rows[np.asarray(places, dtype=np.int64)]


@dataclass(frozen=True)
class Source:
    """What blocks were made from and how many came of it, as the card records it.

    files: names and sizes in bytes.
    fingerprint: of files, tokenizer and packing.
    """

    files: list[tuple[str, int]]
    blocks: int
    pieces: int
    fingerprint: str


@dataclass(frozen=True)
class Corpus:
    """The blocks to train on and those held out. held_out: may be empty."""

    train: Blocks
    held_out: Blocks
    sources: dict[str, Source]


def plan_corpus(settings: CorpusSettings, teacher: Teacher) -> dict[str, Plan]:
    """Find the files of "train" and, where there are any, of "dev". Nothing is written."""
    if settings.block_size > teacher.longest_block:
        raise ConfigError(
            f"corpus.block_size = {settings.block_size}: the teacher has positions for blocks of "
            f"at most {teacher.longest_block} pieces"
        )
    wanted = {"train": (settings.train, settings.max_blocks)}
    if settings.dev:
        wanted["dev"] = (settings.dev, settings.max_dev_blocks)
    plans = {}
    for name, (paths, limit) in wanted.items():
        setting = f"corpus.{name}"
        files = reading.find_files(paths, setting=setting)
        if not files:
            raise CorpusError(
                f"{setting} is empty: name the text to distil on, in the config or with "
                f"--{setting} PATH ({', '.join(reading.SUFFIXES)}, or a directory of such)"
            )
        fingerprint = _fingerprint(files, teacher, settings.block_size, limit)
        plans[name] = Plan(setting, files, limit, fingerprint)
    return plans


def load_corpus(
    plans: Mapping[str, Plan], settings: CorpusSettings, teacher: Teacher, *, cache: Path
) -> Corpus:
    """Read, tokenise and pack the files, or find it done in the cache.

    cache: a directory with one of its own for each corpus. Several processes may call this at once
        and work for nothing at worst; to save that, let one go first.
    """
    remove_unfinished(cache, older_than=STALE_AFTER)
    loaded = {name: _load(plan, settings, teacher, cache) for name, plan in plans.items()}
    sources = {name: source for name, (_, source) in loaded.items()}
    data, source = loaded["train"]
    rows = np.arange(source.blocks)
    if "dev" in loaded:
        dev, dev_source = loaded["dev"]
        return Corpus(Blocks(data, rows), Blocks(dev, np.arange(dev_source.blocks)), sources)
    held_out = _held_out_rows(source.blocks, settings.dev_fraction, settings.max_dev_blocks)
    return Corpus(Blocks(data, np.setdiff1d(rows, held_out)), Blocks(data, held_out), sources)


def _held_out_rows(n_blocks: int, fraction: float, limit: int | None) -> np.ndarray:
    """Evenly spaced blocks, so that a corpus sorted by source is held out in proportion.

    At least one where anything is to be held out, and never all.
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
    plan: Plan, settings: CorpusSettings, teacher: Teacher, cache: Path
) -> tuple[Shards, Source]:
    directory = cache / plan.fingerprint
    if not (directory / COUNTS).exists():
        build(plan, directory, tokenizer=teacher.tokenizer, block_size=settings.block_size)
    counts = json.loads((directory / COUNTS).read_text(encoding="utf-8"))
    files = [(str(path), reading.file_size(path)) for path in plan.files]
    shards = Shards(directory, counts["blocks"], counts["pieces"])
    return shards, Source(files, counts["blocks"], counts["pieces"], plan.fingerprint)


def _fingerprint(
    files: Sequence[Path], teacher: Teacher, block_size: int, limit: int | None
) -> str:
    """Of contents, not of names and times: a copied or freshly checked-out corpus is the same."""
    tokenizer = teacher.tokenizer
    settings = (FORMAT, block_size, limit, tokenizer.cls_token_id, tokenizer.sep_token_id)
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=12)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for file in files:
        digest.update(f"{file.suffix} {reading.file_size(file)}".encode())
        try:
            with file.open("rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise CorpusError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
