"""Build a wheel of a pipeline and its model card, and say how good it is beside its rivals.

    python -m scripts.package PIPELINE PACKAGES --name NAME --version VERSION
        --compare DIR --robustness DIR --row ROW

The output of the build is shown only if it fails. The directories are the outputs of `spacy distil
compare` and `spacy distil robustness`, and ROW is the pipeline's name in them. Warnings name scores
of 0, rivals that score higher on the test documents, and scores that have too few test documents
behind them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from wasabi import msg

from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.pipeline_card import CardRecords, read_results, write_card
from spacy_distil.report.scores import COLUMNS
from spacy_distil.runs.files import write_text

# Differences that are worth a warning: of two scores, and between the ends of an interval.
MARGIN = 0.01
WIDE = 0.1


def build(pipeline: Path, packages: Path, *, name: str, version: str, records: CardRecords) -> Path:
    """Build the wheel, with a model card, and return its path.

    If it fails, print what was printed, and exit.
    """
    packages.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as directory:
        copy = Path(directory) / "pipeline"
        shutil.copytree(pipeline, copy)
        meta = json.loads((copy / "meta.json").read_text(encoding="utf8"))
        write_text(copy / "meta.json", json.dumps({**meta, "name": name, "version": version}))
        write_card(copy, records, force=True)
        _package(copy, packages, name=name, version=version)
    (wheel,) = (packages / f"{meta['lang']}_{name}-{version}" / "dist").glob("*.whl")
    return wheel


def _package(pipeline: Path, packages: Path, *, name: str, version: str) -> None:
    command = ["spacy", "package", str(pipeline), str(packages), "--name", name]
    command += ["--version", version, "--build", "wheel", "--force"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        print(done.stdout)
        sys.exit(done.returncode)


def judge(comparison: Mapping[str, Any], row: str) -> list[str]:
    """Warn of scores of 0, of rivals that score higher than a pipeline, and of wide intervals.

    comparison: contents of compare.json. row: name of the pipeline.
    """
    rows = {each["name"]: each["scores"] for each in comparison["rows"]}
    if row not in rows:
        raise ConfigError(f"The comparison has no row '{row}', but {', '.join(rows)}.")
    ours = rows.pop(row)
    teacher = rows.pop(comparison["teacher"], {})
    warnings = []
    for column in COLUMNS:
        if not (column.is_task and column.key in ours):
            continue
        zero = [
            name
            for name, scores in (("packaged pipeline", ours), ("teacher", teacher))
            if column.key in scores and scores[column.key]["mean"] == 0
        ]
        if zero:
            warnings.append(
                f"{column.key} of the {' and of the '.join(zero)} is 0: nothing is right in "
                f"{comparison['n_docs']:,} test documents. Check the annotation, and train longer "
                "or on more documents."
            )
        score, interval = ours[column.key]["mean"], ours[column.key]["interval"]
        better = {
            name: scores[column.key]["mean"]
            for name, scores in rows.items()
            if column.key in scores and scores[column.key]["mean"] >= score + MARGIN
        }
        within = "" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]"
        what = f"{column.key} of the packaged pipeline is {score:.1%}{within}"
        if better:
            listed = ", ".join(f"{name} {value:.1%}" for name, value in better.items())
            warning = f"{what}, below that of {listed}."
            if interval is not None and interval[1] >= max(better.values()):
                warning += (
                    f" This is within the {comparison['settings']['level']:.0%} interval: "
                    f"{comparison['n_docs']:,} test documents are too few to tell them apart."
                )
            warnings.append(warning)
        elif interval is not None and interval[1] - interval[0] > WIDE:
            warnings.append(
                f"{what}: {comparison['n_docs']:,} test documents are too few to say more."
            )
    return warnings


def main(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline to package", exists=True)],
    packages: Annotated[Path, typer.Argument(help="Directory for the package")],
    name: Annotated[str, typer.Option(help="Name without the language")],
    version: Annotated[str, typer.Option(help="Version of the package")],
    compare: Annotated[Path, typer.Option(help="Output of `spacy distil compare`")],
    robustness: Annotated[Path, typer.Option(help="Output of `spacy distil robustness`")],
    row: Annotated[str, typer.Option(help="The pipeline's name in both")],
) -> None:
    """Build a wheel of a pipeline, and say how good it is beside its rivals."""
    with friendly_errors():
        comparison = read_results(compare, "compare")
        warnings = judge(comparison, row)
        noisy = read_results(robustness, "robustness")
        records = CardRecords(comparison=comparison, robustness=noisy, row=row)
        wheel = build(pipeline, packages, name=name, version=version, records=records)
        msg.good(f"{wheel} ({wheel.stat().st_size / 1e6:,.1f} MB)")
        for warning in warnings:
            msg.warn(warning)


if __name__ == "__main__":
    typer.run(main)
