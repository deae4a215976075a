from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import benchmarks.distillation_memory.__main__ as distillation_memory
from benchmarks.distillation_memory.__main__ import TENTHS, CorpusMemory, ProcessSample
from spacy_distil.distillation.encoder.corpus import Blocks
from spacy_distil.distillation.encoder.shards import Shards, piece_type, write_shards


def sample(mb: float) -> ProcessSample:
    return ProcessSample("then", round(mb * 1e6), round(mb * 1e6), round(mb * 1e6))


MEMORY = CorpusMemory(
    text_bytes=10_000_000,
    disk_bytes=4_000_000,
    n_blocks=10,
    n_pieces=2_000_000,
    start=sample(100),
    built=sample(150),
    epoch=[sample(200), sample(250), sample(200.1)],
    build_seconds=5.0,
    read_seconds=0.5,
)


def test_verdict_is_on_the_ends_of_the_epoch() -> None:
    assert MEMORY.growth == pytest.approx(0.0005)
    assert MEMORY.growth_bytes == 100_000
    assert MEMORY.read_growth_bytes == 50_100_000
    assert MEMORY.is_flat
    assert not replace(MEMORY, epoch=[sample(200), sample(200.3)]).is_flat
    assert replace(MEMORY, epoch=[sample(200), sample(200.3)], disk_bytes=6_000_000).is_flat
    assert distillation_memory.make_table(MEMORY).rows[1] == ["then", "150.0", "150.0", "150.0"]


def test_text_is_the_same_each_time_and_follows_zipf(tmp_path: Path) -> None:
    documents = list(islice(distillation_memory.make_text(3), 200))
    assert documents == list(islice(distillation_memory.make_text(3), 200))
    assert documents != list(islice(distillation_memory.make_text(4), 200))
    assert all(document.endswith(b"\n\n") for document in documents)
    assert {document.count(b"\n") for document in documents} == {6}
    words = b"".join(documents).split()
    assert len(words) == 200 * 400
    counts = sorted(np.unique(words, return_counts=True)[1])[::-1]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.25)
    assert len(counts) > 5_000


def test_files_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_memory, "FILE_BYTES", 10_000)
    files = distillation_memory.write_text(tmp_path, 35_000, seed=0)
    sizes = [path.stat().st_size for path in files]
    assert 35_000 <= sum(sizes) < 40_000
    assert len(sizes) in (3, 4)
    assert all(10_000 <= size < 15_000 for size in sizes[:-1])


def test_each_block_is_read_once(tmp_path: Path) -> None:
    seen: list[int] = []

    class Noted(Blocks):
        def __getitem__(self, places: Sequence[int] | np.ndarray) -> list[np.ndarray]:
            read = super().__getitem__(places)
            seen.extend(int(block[0]) for block in read)
            return read

    blocks = [[i, 0] for i in range(103)]
    counts = write_shards(blocks, tmp_path, block_size=2, dtype=piece_type(103))
    noted = Noted(Shards(tmp_path, *counts), np.arange(103))
    samples, seconds = distillation_memory.read_epoch(noted, batch_size=4, seed=0)
    assert [one.when for one in samples] == [f"{i}/10 of the epoch" for i in range(1, TENTHS + 1)]
    assert sorted(seen) == list(range(103))
    assert seen != sorted(seen)
    assert seconds > 0


READ_EPOCH = """
import sys
from pathlib import Path

import numpy as np

from benchmarks.distillation_memory.__main__ import read_epoch
from spacy_distil.distillation.encoder.corpus import Blocks
from spacy_distil.distillation.encoder.shards import Shards

kept = []

class Keeping(Blocks):
    def __getitem__(self, places):
        read = super().__getitem__(places)
        kept.append(read)
        return read

n_blocks, n_pieces, keeps = map(int, sys.argv[2:])
shards = Shards(Path(sys.argv[1]), n_blocks, n_pieces)
blocks = (Keeping if keeps else Blocks)(shards, np.arange(n_blocks))
for sample in read_epoch(blocks, batch_size=32, seed=0)[0]:
    print(sample.rss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [False, True])
def test_a_corpus_that_stays_in_memory_is_not_flat(tmp_path: Path, keeps: bool) -> None:
    """Runs in a process of its own: memory that other tests have freed could hold the corpus."""
    counts = write_shards([[1] * 512] * 40_000, tmp_path, block_size=512, dtype=piece_type(1))
    disk_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    arguments = [str(tmp_path), *map(str, counts), str(int(keeps))]
    done = subprocess.run(
        [sys.executable, "-c", READ_EPOCH, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    samples = [sample(int(rss) / 1e6) for rss in done.stdout.split()]
    assert len(samples) == TENTHS
    memory = replace(MEMORY, epoch=samples, disk_bytes=disk_bytes)
    assert memory.is_flat is not keeps


@pytest.mark.parametrize("batch_size", [32, 4_000])
def test_whole_run(bert_dir: Path, tmp_path: Path, batch_size: int) -> None:
    gigabytes = 0.002 if batch_size == 32 else 0.001
    output = tmp_path / "out"
    distillation_memory.main(
        gigabytes=gigabytes,
        teacher=str(bert_dir),
        block_size=32,
        batch_size=batch_size,
        work=tmp_path,
        output=output,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    saved = json.loads((output / "distillation_memory.json").read_text(encoding="utf-8"))
    assert gigabytes * 1e9 <= saved["text_bytes"] < gigabytes * 1e9 + 10_000
    assert saved["n_pieces"] <= saved["n_blocks"] * 32
    assert saved["disk_bytes"] == pytest.approx(saved["n_blocks"] * 64, rel=0.01)
    assert len(saved["epoch"]) == TENTHS
    assert saved["epoch"][-1]["peak"] >= saved["epoch"][-1]["rss"] > saved["epoch"][-1]["anonymous"]
    first, last = (saved["epoch"][place]["rss"] for place in (0, -1))
    assert saved["growth"] == last / first - 1
    assert saved["growth_bytes"] == last - first
    assert saved["read_growth_bytes"] == last - saved["built"]["rss"]
    assert saved["flat"] is (last - first <= distillation_memory.FLAT * saved["disk_bytes"])
    text = (output / "distillation_memory.md").read_text(encoding="utf-8")
    assert "| 10/10 of the epoch |" in text
    assert "in random order, in batches of" in text
