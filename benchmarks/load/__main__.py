"""Measure what it takes to load and to save an encoder, beside transformers and tokenizers alone.

    python -m benchmarks.load ENCODER --output benchmarks/load/results

ENCODER is a Hugging Face model directory. The benchmark makes a pipeline of it with a small pipe,
saves, loads and quantizes it. Each step runs in fresh processes, after the imports. The seconds are
medians; the memory is the most of all rounds. The files are in the page cache. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import typer
from wasabi import msg

from benchmarks.common.options import Encoder, OptionalOutput, Repeats, Threads
from benchmarks.common.results import report_results, timestamp
from benchmarks.load.steps import Measurement
from spacy_distil.engines.files import TOKENIZER, WEIGHTS
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.layout import TIMES, count
from spacy_distil.report.process import cpu_environment
from spacy_distil.tables import Table, megabytes_cell

STEM = "load"


def main(
    encoder: Encoder, repeats: Repeats = 3, threads: Threads = 1, output: OptionalOutput = None
) -> None:
    """Measure each step, print the times and the memory, and save them."""
    # The processes that measure inherit the environment.
    os.environ.update({**cpu_environment(threads), "HF_HUB_OFFLINE": "1"})
    date = timestamp()
    found: list[Measurement] = []
    with friendly_errors(), TemporaryDirectory() as directory:
        if not Path("/proc/self/clear_refs").exists():
            raise ConfigError("benchmarks.load measures memory as Linux counts it. Run it there.")
        source, torch, int8 = str(encoder.resolve()), f"{directory}/torch", f"{directory}/int8"
        n_bytes = sum((encoder / name).stat().st_size for name in (WEIGHTS, TOKENIZER))
        for i in range(repeats):
            for step in (
                ("plain", source),
                ("initialize", source, torch),
                ("torch", torch),
                ("quantize", torch, f"{int8}-{i}"),
                ("int8", f"{int8}-{i}"),
            ):
                msg.info(f"Measuring {step[0]}")
                found += run_step(step)
    table = make_table(found, n_bytes)
    about = (
        f"{encoder.name}: {megabytes_cell(n_bytes)} MB of weights and tokenizer; "
        f"{count(threads, 'thread')}, {count(repeats, 'round')}. Each step in a fresh process, "
        "after the imports; seconds are medians, memory is the most of all rounds."
    )
    data = {
        "encoder": encoder.name,
        "n_bytes": n_bytes,
        "threads": threads,
        "repeats": repeats,
        "measurements": [asdict(each) for each in found],
    }
    report_results([table, about], data, output=output, stem=STEM, date=date)


def run_step(arguments: Sequence[str]) -> list[Measurement]:
    """Run `benchmarks.load.steps` in a process. Its errors go to the terminal."""
    command = [sys.executable, "-m", "benchmarks.load.steps", *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise ConfigError(f"{' '.join(command)} failed, see above.")
    return [Measurement(**each) for each in json.loads(run.stdout.splitlines()[-1])]


def make_table(found: Sequence[Measurement], n_bytes: int) -> Table:
    """Make a table with a row per step.

    n_bytes: of the encoder's weights and tokenizer.
    """
    steps: dict[str, list[Measurement]] = {}
    for each in found:
        steps.setdefault(each.step, []).append(each)
    rows = []
    for step, rounds in steps.items():
        peak, kept = (
            max(getattr(each, k) for each in rounds) for k in ("peak_bytes", "kept_bytes")
        )
        rows.append(
            [
                step,
                f"{median(each.seconds for each in rounds):.2f}",
                f"{median(each.cpu_seconds for each in rounds):.2f}",
                megabytes_cell(peak),
                f"{peak / n_bytes:.2f}",
                megabytes_cell(kept),
            ]
        )
    header = ["step", "seconds", "CPU seconds", "peak, MB", f"peak {TIMES} files", "kept, MB"]
    return Table("Loading and saving an encoder", header, rows)


if __name__ == "__main__":
    typer.run(main)
