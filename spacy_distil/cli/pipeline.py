"""`spacy distil pipeline`: distil a trained pipeline into a smaller one."""

from __future__ import annotations

import logging
from typing import Annotated

import typer
from spacy.util import logger

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


@distil_cli.command("pipeline", context_settings=OVERRIDES)
def pipeline_cli(
    ctx: typer.Context,
    teacher: Teacher,
    config_path: StudentConfig,
    output: RunOutput,
    gpu_id: SpacyDevice = -1,
    resume: Resume = False,
    force: ForceRun = False,
    until: Annotated[
        int | None,
        typer.Option(
            "--until",
            metavar="STEP",
            help="Pause after the evaluation at this step. --resume goes on, with the same result.",
        ),
    ] = None,
    code: Code = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-V", help="Show spaCy's messages for debugging.")
    ] = False,
) -> None:
    """Distil a trained teacher pipeline into a smaller student pipeline.

    CONFIG is a config of 'spacy train' with a section [distillation]. The student learns from the
    teacher's distributions over labels (soft targets), from the hidden states of its encoder, and
    from annotation, in stages. It learns on the training corpus, and on any amount of text without
    annotation. If possible, it starts as the teacher's first layers and pipes. Components of any
    kind teach by what they decide. Without --paths.train and --paths.dev, text alone is enough.

    The command computes the teacher's outputs once, and keeps them in DIR/cache. Evaluation,
    patience, loggers, model-best and model-last work as in 'spacy train'. Any setting is an option,
    too, by its dotted name:

    \b
      python -m spacy distil init-config pipeline student.cfg --teacher teacher/model-best
      python -m spacy distil pipeline teacher/model-best student.cfg --output student \\
          --paths.train train.spacy --paths.dev dev.spacy --paths.text texts/

    --resume continues a killed run from its newest checkpoint. --force replaces the run, and a
    cache that no longer fits. For workflows there is --resume --force: if settings, teacher and
    documents are the same, it continues the run, or trains nothing if the run has finished; if they
    are not, it starts over.
    """
    with friendly_errors():
        from spacy_distil.distillation import distil_pipeline

        if verbose:
            logger.setLevel(logging.DEBUG)
        import_code(code)
        distil_pipeline(
            teacher,
            config_path,
            output,
            overrides=parse_overrides(ctx.args),
            gpu_id=gpu_id,
            resume=resume,
            force=force,
            until=until,
        )
