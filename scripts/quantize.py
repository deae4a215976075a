"""Quantize every seed of a pipeline, with `spacy distil quantize`.

    python -m scripts.quantize PIPELINES OUT_DIR --corpus DEV.spacy --reports DIR --seeds 0,1

PIPELINES/seed-N/model-best becomes OUT_DIR/seed-N/model-best: both directories have the same layout
for the scripts that score, compare and package. The measurements are written to DIR/seed-N.json.
The quantized seed that scores best on these documents is copied to OUT_DIR/best. Further options
are passed to `spacy distil quantize`. A finished seed is not quantized again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg
from weasel.util import get_checksum

from project.finished import finish, is_finished
from project.training import parse_seeds
from scripts.train import copy_best
from spacy_distil.errors import ConfigError, friendly_errors


def quantize_seed(
    pipeline: Path, out_dir: Path, corpus: Path, report: Path, options: Sequence[str]
) -> None:
    """Quantize one pipeline, unless an earlier run did so with the same inputs.

    pipeline: directory of a trained pipeline. The quantized one is OUT_DIR/model-best.
    corpus: documents to compare the two on.
    report: JSON file for the measurements.
    options: of `spacy distil quantize`.
    """
    run = {
        "options": list(options),
        "inputs": {str(path): get_checksum(path) for path in (pipeline, corpus)},
    }
    if report.is_file() and is_finished(out_dir, run):
        msg.info(f"{out_dir} is quantized already")
        return
    if out_dir.exists():
        shutil.rmtree(out_dir)
    command = ["spacy", "distil", "quantize", str(pipeline), str(out_dir / "model-best")]
    command += ["--corpus", str(corpus), "--report", str(report), *options]
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode != 0:
        # The command has printed the reason. Most often the two agree too little.
        sys.exit(done.returncode)
    finish(out_dir, run)


def main(
    context: typer.Context,
    pipelines: Annotated[Path, typer.Argument(help="Directory that scripts.train wrote")],
    out_dir: Annotated[Path, typer.Argument(help="Directory for the directories of the seeds")],
    corpus: Annotated[Path, typer.Option(help="Documents to check on: .spacy")],
    reports: Annotated[Path, typer.Option(help="Directory for the measurements")],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them")] = "0",
) -> None:
    """Quantize every seed of a pipeline, with `spacy distil quantize`."""
    with friendly_errors():
        numbers = parse_seeds(seeds)
        sources = [pipelines / f"seed-{seed}" / "model-best" for seed in numbers]
        for path in (*sources, corpus):
            if not path.exists():
                raise ConfigError(f"{path} does not exist. Train the pipeline first.")
        for seed, source in zip(numbers, sources, strict=True):
            name = f"seed-{seed}"
            report = reports / f"{name}.json"
            quantize_seed(source, out_dir / name, corpus, report, context.args)
        copy_best(out_dir, numbers)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    app()
