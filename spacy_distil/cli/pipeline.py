"""`spacy distil pipeline`: a trained pipeline teaches a smaller one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import import_code, parse_config_overrides
from spacy.util import logger

from spacy_distil.cli import distil_cli
from spacy_distil.errors import friendly_errors


@distil_cli.command(
    "pipeline",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def pipeline_cli(
    ctx: typer.Context,
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Trained pipeline: directory or package.")
    ],
    config_path: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="Config of the student; see 'init-config pipeline'."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "--output-path", "-o", help="Directory for model-best and model-last."
        ),
    ],
    gpu_id: Annotated[
        int, typer.Option("--gpu-id", "-g", help="GPU for spaCy's own layers; -1 for the CPU.")
    ] = -1,
    resume: Annotated[
        bool, typer.Option("--resume", "-r", help="Go on from the last evaluation in the output.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", "-F", help="Replace the run, and a stale cache, that the output holds."
        ),
    ] = False,
    code_path: Annotated[
        Path | None,
        typer.Option("--code", "-c", help="Python file with registered functions to import."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-V", help="Show spaCy's messages for debugging.")
    ] = False,
) -> None:
    """Teach a student pipeline what a trained pipeline knows.

    CONFIG is that of a 'spacy train', with a section [distillation]. The student learns from the
    teacher's distributions over labels (soft targets), from its encoder's hidden states, and from
    annotation, in stages; on the training corpus and on any amount of text without annotation.
    Where it can, it starts as the teacher's own first layers and heads.

    What the teacher makes of the text is computed once and kept in DIR/cache. Evaluation, patience,
    loggers, model-best and model-last are those of 'spacy train'. Any setting can be given as an
    option by its dotted name:

    \b
      python -m spacy distil init-config pipeline student.cfg
      python -m spacy distil pipeline teacher/model-best student.cfg --output student \\
          --paths.train train.spacy --paths.dev dev.spacy --paths.text texts/

    A run that was killed goes on with --resume, from its last evaluation. With --resume --force
    a run goes on, or trains nothing where it has finished, if settings, teacher and documents are
    the same, and starts over if they are not: what a workflow wants.
    """
    with friendly_errors():
        from spacy_distil.distillation import distil_pipeline

        if verbose:
            logger.setLevel(logging.DEBUG)
        import_code(code_path)
        distil_pipeline(
            teacher,
            config_path,
            output,
            overrides=parse_config_overrides(ctx.args),
            gpu_id=gpu_id,
            resume=resume,
            force=force,
        )
