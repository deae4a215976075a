"""The tests that need a CUDA GPU, and words per second on it: one table.

    python -m benchmarks.gpu DOCS.spacy ENCODER --output benchmarks/ewt

Runs `tests/gpu`, then encodes and trains as `benchmarks.encode` does, but in the batches that
`init-config train --gpu` writes: in each precision, with the heads on the CPU and, where CuPy is
installed, on the GPU. Without a CUDA GPU it says so and does nothing. `--device cpu` tries the
measuring out without one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
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

from benchmarks.encode import Side, encoding, make_ours, measure, training
from benchmarks.results import save_results
from benchmarks.teaching.speed import Measured
from spacy_distil.cli.configs import training_config
from spacy_distil.errors import friendly_errors
from spacy_distil.report.layout import count, with_range
from spacy_distil.report.machine import command_line
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_examples

STEM = "gpu"
TESTS = Path(__file__).resolve().parents[1] / "tests" / "gpu"
OUTCOMES = ("passed", "failed", "skipped")
NO_CUPY = "CuPy is not installed, or sees no GPU: no row has its heads on the GPU."


@dataclass(frozen=True)
class Row:
    """ops: thinc's, of the heads. settings: of the encoder, that are not its defaults."""

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
PLACES = {"heads on the CPU": "numpy", "heads on the GPU": "cupy"}
ROWS = [
    Row(f"{precision}, {place}", ops, settings)
    for place, ops in PLACES.items()
    for precision, settings in PRECISIONS.items()
]


def main(
    docs: Annotated[Path, typer.Argument(metavar="DOCS.spacy", help="Annotated documents")],
    encoder: Annotated[Path, typer.Argument(help="Hugging Face model directory", exists=True)],
    limit: Annotated[int, typer.Option(help="Documents; 0 for all")] = 0,
    repeats: Annotated[int, typer.Option(help="Rounds", min=1)] = 3,
    batch_size: Annotated[int, typer.Option(help="Documents at a time in nlp.pipe")] = 256,
    device: Annotated[str, typer.Option(help="torch device")] = "cuda",
    tests: Annotated[Path, typer.Option(help="Tests to run", exists=True)] = TESTS,
    output: Annotated[
        Path | None, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")
    ] = None,
) -> None:
    """Run the GPU tests, measure, print the tables and save them."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        msg.warn(f"Skipped: torch {torch.__version__} sees no CUDA GPU.")
        return
    if not has_cupy_gpu:
        msg.warn(NO_CUPY)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    outcomes = run_tests(tests)
    with friendly_errors():
        found = {
            row.title: measure_row(row, docs, encoder, device, limit, repeats, batch_size)
            for row in ROWS
            if row.ops == "numpy" or has_cupy_gpu
        }
    tables = [make_test_table(outcomes), make_speed_table(found)]
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    some = next(iter(found.values()))
    about = (
        f"{name}, torch {torch.__version__}. {some['encoding'].words[0]:,} spaCy tokens of "
        f"{docs.name}, in batches of {batch_size} documents, and in training in those that "
        f"'init-config train --gpu' writes. Words/s: median (range) of {count(repeats, 'round')}, "
        f"one row after the other."
    )
    if not has_cupy_gpu:
        about = f"{about} {NO_CUPY}"
    print("\n".join([*(table.to_text() for table in tables), about]))
    if output is not None:
        data = {
            "gpu": name,
            "cupy": has_cupy_gpu,
            "docs": docs.name,
            "tests": outcomes,
            "rows": {
                title: {task: asdict(measured) for task, measured in tasks.items()}
                for title, tasks in found.items()
            },
            "command": command_line(),
        }
        parts = [*(table.to_markdown() for table in tables), about]
        save_results(output, STEM, data, parts, date=date)
    if any(outcome == "failed" for outcome in outcomes.values()):
        sys.exit(1)


def run_tests(tests: Path) -> dict[str, str]:
    """The outcome of each test, by name, in a process of its own. Prints what fails."""
    with TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", str(tests), f"--junitxml={report}"]
        done = subprocess.run(command, cwd=TESTS.parents[1], check=False)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode} and without a report")
        return read_report(report)


def read_report(path: Path) -> dict[str, str]:
    """The outcome of each test in a JUnit report: one of OUTCOMES."""
    outcomes = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        outcome = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
        outcomes[case.get("name", "?")] = outcome
    return outcomes


def measure_row(
    row: Row, docs: Path, encoder: Path, device: str, limit: int, repeats: int, batch_size: int
) -> dict[str, Measured]:
    """Encoding, and a training epoch with tagger, ner and textcat."""
    with use_ops(row.ops):
        nlp = make_ours(encoder.resolve(), {"device": device, **row.settings})
        examples = read_examples(nlp, docs, limit=limit)
        nlp.initialize(partial(list, examples))
        texts = [example.reference.text for example in examples]
        tasks = {
            "encoding": encoding(nlp, texts, batch_size),
            "training": training(Side(nlp, examples), gpu_config()),
        }
        return {
            task: measure({row.title: run}, repeats, log=lambda message: None)
            for task, run in tasks.items()
        }


def gpu_config() -> Config:
    """What `init-config train --gpu` writes."""
    return Config().from_str(training_config(gpu=True), interpolate=False)


def make_test_table(outcomes: Mapping[str, str]) -> Table:
    """How many tests had which outcome, by test."""
    counts: dict[str, dict[str, int]] = {}
    for name, outcome in outcomes.items():
        counts.setdefault(name.split("[")[0], dict.fromkeys(OUTCOMES, 0))[outcome] += 1
    return Table(
        title="Tests on the GPU",
        header=["test", *OUTCOMES],
        rows=[
            [name.removeprefix("test_").replace("_", " "), *map(str, found.values())]
            for name, found in counts.items()
        ],
    )


def make_speed_table(found: Mapping[str, Mapping[str, Measured]]) -> Table:
    """Words/s of each row, encoding and training."""
    return Table(
        title="Words/s",
        header=["", "encoding", "training"],
        rows=[
            [
                title,
                *(
                    with_range(tasks[task].words_per_second(title), "{:,.0f}")
                    for task in ("encoding", "training")
                ),
            ]
            for title, tasks in found.items()
        ],
    )


if __name__ == "__main__":
    typer.run(main)
