"""`spacy distil compare`: score and measure pipelines on a test set."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import BatchSize, Code, LoadRepeats, Repeats, Title
from spacy_distil.errors import ConfigError, friendly_errors


@distil_cli.command("compare", no_args_is_help=True)
def compare_cli(
    test: Annotated[
        Path,
        typer.Argument(
            metavar="TEST.spacy", help="Annotated documents. No pipeline may have seen them."
        ),
    ],
    pipeline: Annotated[
        list[str],
        typer.Option(
            "--pipeline",
            "-p",
            metavar="NAME=PATH",
            help="Pipeline by directory or package. May be repeated. A pattern such as "
            "training/seed-*/model-best stands for all directories that it matches. Pipelines of "
            "one NAME are seeds and make one row: the mean of their scores, and the speed of the "
            "first.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Directory for compare.json, compare.md, compare.html and compare.png.",
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="NAME",
            help="Pipeline to compute retention from. The HTML page then shows the documents on "
            "which it and the others differ most.",
        ),
    ] = None,
    repeats: Repeats = 5,
    load_repeats: LoadRepeats = 3,
    threads: Annotated[
        int, typer.Option("--threads", help="CPU threads of the speed measurements.")
    ] = 2,
    batch_size: BatchSize = 256,
    limit: Annotated[
        int, typer.Option("--limit", help="Only the first N documents; 0 for all.")
    ] = 0,
    code: Code = None,
    title: Title = "",
    readme: Annotated[
        Path | None,
        typer.Option("--readme", help="Markdown file to write the tables to, between markers."),
    ] = None,
    section: Annotated[
        str,
        typer.Option(
            "--section",
            metavar="NAME",
            help="Name in the markers: <!-- NAME:start --> and <!-- NAME:end -->.",
        ),
    ] = "compare",
) -> None:
    """Compare pipelines on a test set: scores, retention, speed, memory and size.

    Scores come from spaCy's scorer. Speed, load time and memory are measured on the CPU. Each
    pipeline runs in its own process, and the pipelines take turns. The HTML page also shows
    confusions of labels. It is one file that needs no network.
    """
    with friendly_errors():
        from spacy_distil.report import compare
        from spacy_distil.report.comparison_table import to_text
        from spacy_distil.report.machine import command_line

        pipelines: dict[str, list[str]] = {}
        for value in pipeline:
            for name, path in _split(value):
                pipelines.setdefault(name, []).append(path)
        comparison = compare(
            pipelines,
            test,
            output,
            teacher=teacher,
            repeats=repeats,
            load_repeats=load_repeats,
            threads=threads,
            batch_size=batch_size,
            limit=limit,
            code=code,
            title=title,
            readme=readme,
            section=section,
            command=command_line(),
            log=msg.info,
        )
    print(to_text(comparison))
    for verdict in comparison.verdicts:
        msg.warn(verdict)
    msg.good(f"Saved compare.json, compare.md, compare.html and compare.png to {output}")
    if readme is not None:
        msg.good(f"Replaced section '{section}' of {readme}")


def _split(value: str) -> list[tuple[str, str]]:
    """Split NAME=PATH into name and pipeline. A pattern for PATH gives a pair for each match."""
    name, equals, pipeline = (part.strip() for part in value.partition("="))
    if not (name and equals and pipeline):
        raise ConfigError(
            f"--pipeline {value}: expected NAME=PATH, such as student=training/student/model-best."
        )
    if not glob.has_magic(pipeline) or Path(pipeline).exists():
        return [(name, pipeline)]
    paths = sorted(glob.glob(pipeline))
    if not paths:
        raise ConfigError(f"--pipeline {value}: nothing matches {pipeline}. Train it first.")
    return [(name, path) for path in paths]
