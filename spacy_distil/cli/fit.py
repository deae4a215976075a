"""`spacy distil fit`: find the best student that fits a budget."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    OVERRIDES,
    Code,
    ForceRun,
    Resume,
    RunOutput,
    SpacyDevice,
    StudentConfig,
    Teacher,
    parse_overrides,
)
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import import_code


class Percentile(str, Enum):
    """Of the texts, for latency."""

    p50 = "50"
    p95 = "95"


@distil_cli.command("fit", context_settings=OVERRIDES, no_args_is_help=True)
def fit_cli(
    ctx: typer.Context,
    teacher: Teacher,
    config_path: StudentConfig,
    output: RunOutput,
    words_per_second: Annotated[
        float | None,
        typer.Option("--words-per-second", help="Fewest words/s through nlp.pipe."),
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option("--latency-ms", help="Longest time of nlp(text), in milliseconds."),
    ] = None,
    percentile: Annotated[
        Percentile, typer.Option("--percentile", help="Percentile of the latency over texts.")
    ] = Percentile.p50,
    size_mb: Annotated[
        float | None, typer.Option("--size-mb", help="Largest size on disk, in MB.")
    ] = None,
    memory_mb: Annotated[
        float | None,
        typer.Option("--memory-mb", help="Largest peak memory of a process, in MB."),
    ] = None,
    min_retention: Annotated[
        float | None,
        typer.Option(
            "--min-retention",
            help="Lowest score as a share of the teacher's, such as 0.99. The student is then the "
            "fastest one that reaches it.",
        ),
    ] = None,
    cores: Annotated[int, typer.Option("--cores", help="CPU cores that the student gets.")] = 1,
    family: Annotated[
        bool,
        typer.Option(
            "--family",
            help="Train all of the best trade-offs to the end, and keep them in one pipeline. "
            "spacy_distil.load chooses from them where it runs.",
        ),
    ] = False,
    gpu_id: SpacyDevice = -1,
    resume: Resume = False,
    force: ForceRun = False,
    code: Code = None,
) -> None:
    """Find the best student of a teacher that fits a budget, and quantize it.

    Students of many shapes are built, quantized and timed on this machine before any of them is
    trained. Only those that fit are, by successive halving, on one cache of the teacher's outputs.
    All other settings are in the section [fit] of CONFIG, or options by their dotted names:

    \b
      python -m spacy distil init-config pipeline student.cfg --teacher teacher/model-best
      python -m spacy distil fit teacher/model-best student.cfg --output fitted \\
          --words-per-second 20000 --cores 1 --paths.train train.spacy --paths.dev dev.spacy

    DIR/best is the student. DIR/fit.html shows all of them. --resume goes on with a search that was
    stopped.
    """
    with friendly_errors():
        from spacy_distil.fitting.fit import fit
        from spacy_distil.fitting.report import to_text
        from spacy_distil.report.machine import command_line

        import_code(code)
        options: dict[str, Any] = {
            "words_per_second": words_per_second,
            "latency_ms": latency_ms,
            "percentile": None if percentile is Percentile.p50 else int(percentile.value),
            "size_mb": size_mb,
            "memory_mb": memory_mb,
            "min_retention": min_retention,
            "cores": None if cores == 1 else cores,
            "family": family or None,
        }
        given = {f"fit.{name}": value for name, value in options.items() if value is not None}
        found = fit(
            teacher,
            config_path,
            output,
            overrides={**parse_overrides(ctx.args), **given},
            gpu_id=gpu_id,
            code=code,
            resume=resume,
            force=force,
            command=command_line(),
            log=msg.info,
        )
    print(to_text(found))
    fate = found.students[found.best].fate
    if fate != "chosen":
        msg.warn(f"{found.best}: {fate}")
    if family:
        msg.good(f"Saved the family to {found.path}")
    msg.good(f"Saved {found.best} to {found.output / 'best'}, and the report to fit.html")
