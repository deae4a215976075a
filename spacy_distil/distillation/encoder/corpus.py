"""The corpus as training sees it: blocks that are tokenized once and then read from shards."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from wasabi import msg

from spacy_distil.distillation.encoder.building import COUNTS, CorpusPlan, build
from spacy_distil.distillation.encoder.shards import Shards
from spacy_distil.errors import ConfigError, CorpusError, DamagedError
from spacy_distil.runs.digests import check_directory
from spacy_distil.runs.files import STALE_AFTER, remove_unfinished
from spacy_distil.students.masking import seed_for
from spacy_distil.tables import megabytes
from spacy_distil.text import plain_text
from spacy_distil.text.sampling import count_reads, epoch_units, temperature_repeats

if TYPE_CHECKING:
    from spacy_distil.distillation.encoder.config import CorpusSettings
    from spacy_distil.students.teachers import Teacher

# Part of the fingerprint. Raise it when a change of reading, packing or shards changes the blocks.
FORMAT = 3


class Blocks:
    """Some blocks of a corpus, read from its shards on demand.

    shards: of the whole corpus, or language.
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


class LanguageShare(NamedTuple):
    """What an epoch has of a language.

    blocks: how many there are. repeats: how often an epoch reads each of them, on average.
    share: of all blocks that an epoch reads, 0 to 1.
    """

    language: str
    blocks: int
    repeats: float
    share: float


class Mixture:
    """The blocks of all languages, numbered one language after the other.

    languages: blocks by name of a language; "" is the name of text whose language is not told.
    repeats: how often an epoch reads each language, at least once. By default once.
    """

    def __init__(
        self, languages: Mapping[str, Blocks], repeats: Sequence[float] | None = None
    ) -> None:
        self.languages = dict(languages)
        self.repeats = [1.0] * len(languages) if repeats is None else [*map(float, repeats)]
        self._blocks = [*self.languages.values()]
        self._ends = np.cumsum([0, *map(len, self._blocks)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lengths(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Numbers of pieces of some blocks, without reading them: (n,) int64."""
        lengths = np.empty(len(numbers), dtype=np.int64)
        for blocks, where, places in self._divide(numbers):
            lengths[where] = blocks.lengths(places)
        return lengths

    def __getitem__(self, numbers: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Read some blocks, in any order: ids of pieces, (length,) uint16 or int32 each."""
        read: dict[int, np.ndarray] = {}
        for blocks, where, places in self._divide(numbers):
            read.update(zip(where.tolist(), blocks[places], strict=True))
        return [read[place] for place in range(len(numbers))]

    @property
    def epoch_length(self) -> int:
        """Number of blocks that an epoch reads."""
        return sum(map(count_reads, map(len, self._blocks), self.repeats))

    def epoch(self, epoch: int, *, seed: int) -> np.ndarray:
        """List the numbers of the blocks that an epoch reads, language after language.

        epoch: from 0. seed: of the run.
        RETURNS: (epoch_length,) int64. It depends on the arguments alone.
        """
        units = [
            start + epoch_units(len(blocks), times, epoch=epoch, seed=seed_for(seed, language))
            for start, (language, blocks), times in zip(
                self._ends[:-1], self.languages.items(), self.repeats, strict=True
            )
        ]
        return np.concatenate(units)

    def shares(self) -> list[LanguageShare]:
        """List what an epoch has of each language."""
        reads = [*map(count_reads, map(len, self._blocks), self.repeats)]
        return [
            LanguageShare(language, len(blocks), n / len(blocks), n / sum(reads))
            for (language, blocks), n in zip(self.languages.items(), reads, strict=True)
        ]

    def _divide(
        self, numbers: Sequence[int] | np.ndarray
    ) -> Iterator[tuple[Blocks, np.ndarray, np.ndarray]]:
        """Yield blocks of a language, their indices in `numbers`, and their places in the language.

        Raises IndexError if there is no such block.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        languages = np.searchsorted(self._ends, numbers, side="right") - 1
        for language in np.unique(languages):
            where = np.flatnonzero(languages == language)
            yield self._blocks[language], where, numbers[where] - self._ends[language]


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

    held_out: has only languages of which some blocks are held out, so it may be empty.
    sources: by `CorpusPlan.name`. "dev" is there if the corpus has its own held-out files.
    """

    train: Mixture
    held_out: Mixture
    sources: dict[str, Source]


def plan_corpus(settings: CorpusSettings, teacher: Teacher) -> list[CorpusPlan]:
    """Find the files to train on and, if the settings name some, the held-out files. Each language
    has its own plan. Nothing is written.
    """
    if settings.block_size > teacher.longest_block:
        raise ConfigError(
            f"corpus.block_size = {settings.block_size}: the teacher has positions for blocks of "
            f"at most {teacher.longest_block} pieces"
        )
    plans = []
    for setting, kind, language, paths in settings_of_text(settings):
        limit = settings.max_blocks if kind == "train" else settings.max_dev_blocks
        files = plain_text.find_files(paths, setting=setting)
        if not files:
            raise CorpusError(
                f"{setting} is empty: name the text to distil on, in the config or with "
                f"--{setting} PATH ({', '.join(plain_text.SUFFIXES)}, or a directory of such files)"
            )
        fingerprint = _fingerprint(
            files, teacher, settings.block_size, limit, settings.txt_documents
        )
        plans.append(
            CorpusPlan(setting, files, limit, fingerprint, settings.txt_documents, kind, language)
        )
    return plans


def shared_files(plans: Sequence[CorpusPlan]) -> dict[Path, list[str]]:
    """Find files that are named more than once.

    RETURNS: the settings that name each of them, by path.
    """
    settings: dict[Path, list[str]] = {}
    for plan in plans:
        for path in plan.files:
            settings.setdefault(path.resolve(), []).append(plan.setting)
    return {path: names for path, names in settings.items() if len(names) > 1}


def settings_of_text(
    settings: CorpusSettings,
) -> Iterator[tuple[str, Literal["train", "dev"], str, list[str]]]:
    """Yield setting, kind, language and paths of all text."""
    if not settings.languages:
        yield "corpus.train", "train", "", settings.train
        if settings.dev:
            yield "corpus.dev", "dev", "", settings.dev
    for language, paths in settings.languages.items():
        yield f"corpus.languages.{language}", "train", language, paths
    for language, paths in settings.dev_languages.items():
        yield f"corpus.dev_languages.{language}", "dev", language, paths


def load_corpus(
    plans: Sequence[CorpusPlan],
    settings: CorpusSettings,
    teacher: Teacher,
    *,
    cache: Path,
    checks: bool = True,
) -> Corpus:
    """Read, tokenize and pack the files, unless the cache has their blocks.

    cache: directory with a subdirectory for each plan. Several processes may call this at once,
        but each would do all the work: let one go first.
    checks: whether to check the digests of the blocks, which reads all of them. One of
        the processes on a machine does it for all.
    Raises CorpusError if there is no text, or the cache is damaged.
    """
    remove_unfinished(cache, older_than=STALE_AFTER)
    train: dict[str, Blocks] = {}
    held_out: dict[str, Blocks] = {}
    sources = {}
    own_files = {plan.language for plan in plans if plan.kind == "dev"}
    for plan in plans:
        data, sources[plan.name] = _load(plan, settings, teacher, cache, checks)
        rows = np.arange(len(data))
        if plan.kind == "dev":
            held_out[plan.language] = Blocks(data, rows)
        elif plan.language in own_files:
            train[plan.language] = Blocks(data, rows)
        else:
            dev = _held_out_rows(plan, len(data), settings.dev_fraction, settings.max_dev_blocks)
            train[plan.language] = Blocks(data, np.setdiff1d(rows, dev))
            held_out[plan.language] = Blocks(data, dev)
    repeats = temperature_repeats([*map(len, train.values())], settings.alpha)
    scored = {language: held_out[language] for language in train if len(held_out[language])}
    return Corpus(Mixture(train, [*repeats]), Mixture(scored), sources)


def _held_out_rows(
    plan: CorpusPlan, n_blocks: int, fraction: float, limit: int | None
) -> np.ndarray:
    """Choose evenly spaced blocks, so that each part of a sorted corpus is held out in proportion.

    fraction: of the blocks; 0 chooses none, any other fraction at least one.
    """
    if fraction == 0:
        return np.arange(0)
    count = max(1, round(n_blocks * fraction))
    count = count if limit is None else min(count, limit)
    if count >= n_blocks:
        raise CorpusError(
            f"{plan.setting} makes {n_blocks} blocks, and corpus.dev_fraction = {fraction} holds "
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
