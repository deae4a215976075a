"""Quantize every seed of the pipeline that scores best, and calibrate it.

    python -m scripts.quantize OUT_DIR --from NAME=PIPELINES [--from NAME=PIPELINES] --packaged best
        --corpus DEV.spacy --reports DIR --seeds 0,1

Of the pipelines, the one whose best seed scores highest on the development documents is chosen, or
the one that --packaged names. PIPELINES/seed-N/model-best becomes OUT_DIR/seed-N/model-best: both
directories have the same layout for the scripts that score, compare and package. The measurements
are written to DIR/seed-N.json and DIR/seed-N-calibration.json. The quantized seed that scores best
on these documents is copied to OUT_DIR/best. Further options are passed to `spacy distil quantize`.
A finished seed is not quantized again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg
from weasel.util import get_checksum

from project.finished import finish, is_finished
from project.training import parse_seeds
from scripts.train import copy_best, dev_score
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.runs.files import write_text
from spacy_distil.trust.calibration import NothingToCalibrate, calibrate
from spacy_distil.trust.calibration_table import to_text

BEST = "best"


def parse_sources(values: Sequence[str]) -> dict[str, Path]:
    """Read NAME=PIPELINES of each --from."""
    sources = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path) or name == BEST:
            raise ConfigError(f"--from {value}: expected NAME=PIPELINES, with a name but '{BEST}'")
        sources[name] = Path(path)
    return sources


def choose(sources: Mapping[str, Path], packaged: str, seeds: Sequence[int]) -> Path:
    """Choose the pipelines whose best seed scores highest on the development documents.

    packaged: "best", or the name of the pipelines to take whatever they score.
    """
    if packaged not in (BEST, *sources):
        expected = ", ".join((BEST, *sources))
        raise ConfigError(f"packaged = '{packaged}': expected one of {expected}")
    if len(sources) == 1:
        return next(iter(sources.values()))
    scores = {
        name: max(dev_score(path / f"seed-{seed}" / "model-best") for seed in seeds)
        for name, path in sources.items()
    }
    highest = max(scores, key=lambda name: scores[name])
    chosen = highest if packaged == BEST else packaged
    listed = ", ".join(f"{name} {score:.1%}" for name, score in scores.items())
    text = f"Packaged: {chosen}. Scores on the development documents: {listed}"
    if scores[chosen] < scores[highest]:
        msg.warn(f"{text}. packaged = '{BEST}' would take {highest}")
    elif chosen != next(iter(sources)):
        msg.warn(
            f"{text}. Distilling the teacher's pipeline did not help here: it needs a better "
            "teacher, or more text"
        )
    else:
        msg.info(text)
    return sources[chosen]


def quantize_seed(
    pipeline: Path, out_dir: Path, corpus: Path, report: Path, options: Sequence[str]
) -> None:
    """Quantize and calibrate one pipeline, unless an earlier run did so with the same inputs.

    pipeline: directory of a trained pipeline. The quantized one is OUT_DIR/model-best.
    corpus: documents to compare the two on, and to calibrate on.
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
    quantized, best = out_dir / "quantized", out_dir / "model-best"
    command = ["spacy", "distil", "quantize", str(pipeline), str(quantized)]
    command += ["--corpus", str(corpus), "--report", str(report), *options]
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode != 0:
        # The command has printed the reason. Most often the two agree too little.
        sys.exit(done.returncode)
    _calibrate(quantized, best, corpus, report.with_stem(f"{report.stem}-calibration"))
    shutil.rmtree(quantized)
    finish(out_dir, run)


def _calibrate(pipeline: Path, output: Path, corpus: Path, report: Path) -> None:
    """Calibrate a pipeline, or copy it if it has no pipe that can be calibrated."""
    try:
        result = calibrate(pipeline, output, corpus=corpus, log=msg.info)
    except NothingToCalibrate as error:
        msg.info(str(error))
        shutil.copytree(pipeline, output)
        return
    write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")
    print(to_text(result, tested=False))
    for warning in result.warnings:
        msg.warn(warning)


def main(
    context: typer.Context,
    out_dir: Annotated[Path, typer.Argument(help="Directory for the directories of the seeds")],
    corpus: Annotated[Path, typer.Option(help="Documents to check on: .spacy")],
    source: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="NAME=PIPELINES",
            help="Directory that scripts.train or scripts.distil_pipeline wrote; the first one is "
            "taken if scores are equal",
        ),
    ],
    reports: Annotated[Path, typer.Option(help="Directory for the measurements")],
    packaged: Annotated[
        str, typer.Option(help=f"Pipelines to quantize: a name, or '{BEST}' for the best on dev")
    ] = BEST,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them")] = "0",
) -> None:
    """Quantize every seed of the pipeline that scores best, and calibrate it."""
    with friendly_errors():
        numbers = parse_seeds(seeds)
        sources = parse_sources(source)
        names = [f"seed-{seed}" for seed in numbers]
        trained = [path / name / "model-best" for path in sources.values() for name in names]
        for path in (*trained, corpus):
            if not path.exists():
                raise ConfigError(f"{path} does not exist. Train the pipeline first.")
        chosen = choose(sources, packaged, numbers)
        for name in names:
            report = reports / f"{name}.json"
            quantize_seed(
                chosen / name / "model-best", out_dir / name, corpus, report, context.args
            )
        copy_best(out_dir, numbers)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    app()
