"""`spacy distil adapt`: train a teacher encoder further on text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.configs import adapt_config
from spacy_distil.cli.options import OVERRIDES, Device, ForceRun, Resume, RunOutput, parse_overrides
from spacy_distil.errors import friendly_errors


@distil_cli.command("adapt", context_settings=OVERRIDES)
def adapt_cli(
    ctx: typer.Context,
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Encoder: directory or hub name.")
    ],
    corpus: Annotated[
        list[Path],
        typer.Option(
            "--corpus",
            help="Text: a .txt, .jsonl or .spacy file, or a directory of them. May be repeated.",
        ),
    ],
    output: RunOutput,
    gpu_id: Device = None,
    resume: Resume = False,
    force: ForceRun = False,
) -> None:
    """Train a teacher encoder further on your own text.

    The whole encoder learns to guess masked pieces, which needs no labels. It gets to know the
    words and the style of your domain before a student learns from it. A teacher without a
    masked-LM head, such as a sentence encoder or ELECTRA's discriminator, gets a head that is tied
    to its piece embeddings. A student can then learn its distribution over pieces, too.

    The output directory is an ordinary Hugging Face model directory. Beside the model it holds the
    same files as the output of 'spacy distil encoder'. Use it as the teacher of the next run:

    \b
      python -m spacy distil adapt bert-base-uncased --corpus texts/ --output adapted
      python -m spacy distil encoder encoder.cfg --output student --teacher.name adapted

    Any setting of the config of 'spacy distil encoder' is an option, by its dotted name:

    \b
      ... --training.max_steps 1000 --training.learn_rate 5e-5 --corpus.block_size 512

    --resume and --force work as in 'spacy distil encoder'.
    """
    with friendly_errors():
        from spacy_distil.distillation import distil_encoder

        distil_encoder(
            adapt_config(teacher, corpus),
            output,
            overrides=parse_overrides(ctx.args),
            gpu_id=gpu_id,
            resume=resume,
            force=force,
        )
