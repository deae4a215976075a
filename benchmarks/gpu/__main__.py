"""Run the tests that need a CUDA GPU, and measure words/s on it.

    python -m benchmarks.gpu DOCS.spacy ENCODER --output benchmarks/gpu/results

The benchmark runs `tests/gpu`. Then it encodes and trains as `benchmarks.encode` does, but in the
batches of `init-config train --gpu`: in each precision, with thinc's layers on the CPU and, if CuPy
is installed, on the GPU. Without a CUDA GPU it says so and does nothing. `--device cpu` tries the
benchmark out without one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from xml.etree import ElementTree

import torch
import typer
from thinc.api import Config, use_ops
from thinc.compat import has_cupy_gpu
from wasabi import msg

from benchmarks.common.cells import rate
from benchmarks.common.options import BatchSize, Docs, Encoder, Limit, OptionalOutput, Repeats
from benchmarks.common.project import REPO
from benchmarks.common.results import report_results, timestamp
from benchmarks.common.rounds import Rounds
from benchmarks.encode.sides import PipelineSide, make_ours
from benchmarks.encode.timing import encoding, measure, training
from spacy_distil.cli.configs import training_config
from spacy_distil.errors import friendly_errors
from spacy_distil.report.layout import count
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_examples

STEM = "gpu"
TESTS = REPO / "tests" / "gpu"
OUTCOMES = ("passed", "failed", "skipped")
TASKS = ("encoding", "training")
NO_CUPY = "CuPy is not installed, or sees no GPU: no row has its pipes on the GPU."


@dataclass(frozen=True)
class PrecisionRow:
    """One way to run a pipeline on a GPU.

    ops: name of thinc's ops, which run the pipes behind the encoder.
    settings: the settings of the encoder that differ from the defaults.
    """

    title: str
    ops: str
    settings: Mapping[str, Any]


PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "mixed precision": {"mixed_precision": True},
    "mixed precision, gradient_checkpointing": {
        "mixed_precision": True,
        "gradient_checkpointing": True,
    },
}
PLACES = {"pipes on the CPU": "numpy", "heads on the GPU": "cupy"}
ROWS = [
    PrecisionRow(f"{precision}, {place}", ops, settings)
    for place, ops in PLACES.items()
    for precision, settings in PRECISIONS.items()
]


def main(
    docs: Docs,
    encoder: Encoder,
    limit: Limit = 0,
    repeats: Repeats = 3,
    batch_size: BatchSize = 256,
    device: Annotated[str, typer.Option(help="torch device")] = "cuda",
    tests: Annotated[Path, typer.Option(help="Tests to run", exists=True)] = TESTS,
    output: OptionalOutput = None,
) -> None:
    """Run the GPU tests, measure, print the tables and save them."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        msg.warn(f"Skipped: torch {torch.__version__} sees no CUDA GPU.")
        return
    if not has_cupy_gpu:
        msg.warn(NO_CUPY)
    date = timestamp()
    outcomes = run_tests(tests)
    with friendly_errors():
        timings = {
            row.title: measure_row(row, docs, encoder, device, limit, repeats, batch_size)
            for row in ROWS
            if row.ops == "numpy" or has_cupy_gpu
        }
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    n_words = next(iter(timings.values()))["encoding"].words[0]
    about = (
        f"{name}, torch {torch.__version__}. {n_words:,} spaCy tokens of {docs.name}, in batches "
        f"of {batch_size} documents, and for training in the batches of 'init-config train "
        f"--gpu'. Words/s: median (range) of {count(repeats, 'round')}, one row after the other."
    )
    if not has_cupy_gpu:
        about = f"{about} {NO_CUPY}"
    data = {
        "gpu": name,
        "cupy": has_cupy_gpu,
        "docs": docs.name,
        "tests": outcomes,
        "rows": {
            title: {task: asdict(rounds) for task, rounds in tasks.items()}
            for title, tasks in timings.items()
        },
    }
    tables = [make_test_table(outcomes), make_speed_table(timings)]
    report_results([*tables, about], data, output=output, stem=STEM, date=date)
    if any(outcome == "failed" for outcome in outcomes.values()):
        sys.exit(1)


def run_tests(tests: Path) -> dict[str, str]:
    """Run tests in a process of its own, which prints the failures.

    RETURNS: the outcome of each test, by name.
    """
    with TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", str(tests), f"--junitxml={report}"]
        done = subprocess.run(command, cwd=REPO, check=False)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode} and without a report")
        return read_report(report)


def read_report(path: Path) -> dict[str, str]:
    """Read a JUnit report. RETURNS: the outcome of each test, one of `OUTCOMES`."""
    outcomes = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        outcome = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
        outcomes[case.get("name", "?")] = outcome
    return outcomes


def measure_row(
    row: PrecisionRow,
    docs: Path,
    encoder: Path,
    device: str,
    limit: int,
    repeats: int,
    batch_size: int,
) -> dict[str, Rounds]:
    """Time encoding, and a training epoch with tagger, ner and textcat."""
    with use_ops(row.ops):
        nlp = make_ours(encoder.resolve(), {"device": device, **row.settings})
        examples = read_examples(nlp, docs, limit=limit)
        nlp.initialize(partial(list, examples))
        texts = [example.reference.text for example in examples]
        tasks = {
            "encoding": encoding(nlp, texts, batch_size),
            "training": training(PipelineSide(nlp, examples), gpu_config()),
        }
        return {
            task: measure({row.title: run}, repeats, log=lambda message: None)
            for task, run in tasks.items()
        }


def gpu_config() -> Config:
    """The config that `init-config train --gpu` writes."""
    return Config().from_str(training_config(gpu=True), interpolate=False)


def make_test_table(outcomes: Mapping[str, str]) -> Table:
    """Count the outcomes of each test, its parameters added up."""
    counts: dict[str, dict[str, int]] = {}
    for name, outcome in outcomes.items():
        counts.setdefault(name.split("[")[0], dict.fromkeys(OUTCOMES, 0))[outcome] += 1
    return Table(
        title="Tests on the GPU",
        header=["test", *OUTCOMES],
        rows=[
            [name.removeprefix("test_").replace("_", " "), *map(str, by_outcome.values())]
            for name, by_outcome in counts.items()
        ],
    )


def make_speed_table(timings: Mapping[str, Mapping[str, Rounds]]) -> Table:
    """Make the table of words/s in encoding and training."""
    return Table(
        title="Words/s",
        header=["", *TASKS],
        rows=[
            [title, *(rate(tasks[task].words_per_second(title)) for task in TASKS)]
            for title, tasks in timings.items()
        ],
    )


if __name__ == "__main__":
    typer.run(main)
