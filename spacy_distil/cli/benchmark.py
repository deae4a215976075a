"""`spacy distil benchmark`: measure pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    Code,
    LoadRepeats,
    NamedPipelines,
    Repeats,
    Title,
    TxtDocumentsChoice,
    TxtDocumentsOption,
    name_pipelines,
)
from spacy_distil.errors import ConfigError, friendly_errors

if TYPE_CHECKING:
    from spacy_distil.report.process import PipelineSource


@distil_cli.command("benchmark", no_args_is_help=True)
def benchmark_cli(
    pipeline: NamedPipelines,
    texts: Annotated[
        Path,
        typer.Option(
            "--texts",
            "-t",
            help='Texts to process: .txt, .jsonl with {"text": "..."}, or .spacy.',
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Directory for benchmark.json, benchmark.md, benchmark.html and benchmark.png.",
        ),
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", metavar="N,...", help="Documents processed at a time.")
    ] = "1,16,256",
    threads: Annotated[
        str, typer.Option("--threads", metavar="N,...", help="CPU threads of each process.")
    ] = "1,2",
    repeats: Repeats = 5,
    load_repeats: LoadRepeats = 3,
    latency_texts: Annotated[
        int,
        typer.Option("--latency-texts", help="Texts processed one at a time in each round."),
    ] = 100,
    pin_cores: Annotated[
        int | None,
        typer.Option("--pin-cores", metavar="N", help="Confine each process to N cores (Linux)."),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(
            "--python",
            metavar="NAME=PYTHON",
            help="Python interpreter of an environment with spaCy, to run the pipeline NAME in. "
            "May be repeated.",
        ),
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option(
            "--gold",
            metavar="TEST.spacy",
            help="Annotated documents to score on. The plot then shows accuracy against speed, and "
            "the HTML page confusions of labels.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Only the first N texts and gold documents; 0 for all.")
    ] = 0,
    txt_documents: TxtDocumentsOption = TxtDocumentsChoice.auto,
    code: Code = None,
    title: Title = "",
) -> None:
    """Measure pipelines on the CPU: words/s, latency, memory, load time and size.

    Each pipeline runs in its own process. The pipelines take turns, and the tables show medians and
    spread. You can measure any spaCy pipeline, with or without spacy-distil.
    """
    with friendly_errors():
        from spacy_distil.report import benchmark
        from spacy_distil.report.benchmark_table import to_text
        from spacy_distil.report.machine import command_line

        result = benchmark(
            _sources(pipeline, python or []),
            texts,
            output,
            batch_sizes=_numbers(batch_sizes, "--batch-sizes"),
            threads=_numbers(threads, "--threads"),
            repeats=repeats,
            load_repeats=load_repeats,
            latency_texts=latency_texts,
            pin_cores=pin_cores,
            gold=gold,
            limit=limit,
            txt_documents=txt_documents.value,
            code=code,
            title=title,
            command=command_line(),
            log=msg.info,
        )
    print(to_text(result))
    for verdict in result.verdicts:
        msg.warn(verdict)
    if output is not None:
        msg.good(
            f"Saved benchmark.json, benchmark.md, benchmark.html and benchmark.png to {output}"
        )


def _sources(pipelines: list[str], pythons: list[str]) -> dict[str, PipelineSource]:
    """Parse PIPELINE... and --python: the pipelines by name, each with its interpreter."""
    from spacy_distil.report.process import PipelineSource

    interpreters: dict[str, str] = {}
    for value in pythons:
        name, equals, python = (part.strip() for part in value.partition("="))
        if not (name and equals and python):
            raise ConfigError(f"--python {value}: expected NAME=PYTHON, such as cnn=bin/python.")
        interpreters[name] = python
    sources = {
        name: PipelineSource(pipeline, interpreters.pop(name, None))
        for name, pipeline in name_pipelines(pipelines).items()
    }
    if interpreters:
        raise ConfigError(
            f"--python {', '.join(interpreters)}: expected names of pipelines, "
            f"{', '.join(sources)}."
        )
    return sources


def _numbers(value: str, option: str) -> list[int]:
    """Parse whole numbers between commas. Repeated ones count once."""
    try:
        return list(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise ConfigError(f"{option} {value}: expected whole numbers, such as 1,16,256.") from None
