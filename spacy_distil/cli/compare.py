"""`python -m spacy distil compare`."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli import distil_cli
from spacy_distil.errors import ConfigError, friendly_errors


@distil_cli.command("compare", no_args_is_help=True)
def compare_cli(
    test: Annotated[
        Path,
        typer.Argument(
            metavar="TEST.spacy", help="Annotated documents that no pipeline was trained on."
        ),
    ],
    pipeline: Annotated[
        list[str],
        typer.Option(
            "--pipeline",
            "-p",
            metavar="NAME=PATH",
            help="Pipeline by directory or package name. Repeat it for each pipeline. Pipelines of "
            "the same NAME are seeds of one row: scores are averaged, speed is that of the first. "
            "A pattern such as training/seed-*/model-best stands for each directory it matches.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Directory for compare.json, compare.md and compare.png."
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="NAME", help="Pipeline that retention refers to."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed rounds; the median counts.")] = 5,
    load_repeats: Annotated[
        int, typer.Option("--load-repeats", help="Timed starts in a fresh process.")
    ] = 3,
    threads: Annotated[
        int, typer.Option("--threads", help="CPU threads while speed is measured.")
    ] = 2,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Documents at a time.")] = 256,
    limit: Annotated[
        int, typer.Option("--limit", help="Only the first N documents; 0 for all.")
    ] = 0,
    title: Annotated[str, typer.Option("--title", help="Heading of the tables and the plot.")] = "",
    readme: Annotated[
        Path | None,
        typer.Option("--readme", help="Markdown file that gets the tables too, between markers."),
    ] = None,
    section: Annotated[
        str,
        typer.Option(
            "--section",
            metavar="NAME",
            help="The markers in --readme: <!-- NAME:start --> and <!-- NAME:end -->.",
        ),
    ] = "compare",
) -> None:
    """Compare pipelines on a test set: scores, retention, speed, memory and size.

    Scores come from spaCy's scorer. Speed, load time and memory are measured on the CPU, each
    pipeline in a process of its own, in rounds that take turns.
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
            title=title,
            readme=readme,
            section=section,
            command=command_line(),
            log=msg.info,
        )
    print(to_text(comparison))
    msg.good(f"Saved compare.json, compare.md and compare.png to {output}")
    if readme is not None:
        msg.good(f"Replaced section '{section}' of {readme}")


def _split(value: str) -> list[tuple[str, str]]:
    """NAME=PATH as name and pipeline; with a pattern for PATH, one pair for each directory."""
    name, equals, pipeline = (part.strip() for part in value.partition("="))
    if not (name and equals and pipeline):
        raise ConfigError(
            f"--pipeline {value}: expected NAME=PATH, such as student=training/student/model-best."
        )
    if not glob.has_magic(pipeline) or Path(pipeline).exists():
        return [(name, pipeline)]
    found = sorted(glob.glob(pipeline))
    if not found:
        raise ConfigError(f"--pipeline {value}: nothing matches {pipeline}. Train it first.")
    return [(name, path) for path in found]
