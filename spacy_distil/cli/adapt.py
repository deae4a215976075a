"""`spacy distil adapt`: train a teacher encoder further on one's own text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import parse_config_overrides

from spacy_distil.cli import distil_cli
from spacy_distil.cli.adapt_template import adapt_config
from spacy_distil.errors import friendly_errors


@distil_cli.command(
    "adapt",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def adapt_cli(
    ctx: typer.Context,
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Directory or hub name of an encoder.")
    ],
    corpus: Annotated[
        list[Path],
        typer.Option(
            "--corpus",
            "-c",
            help="Text: a file (.txt, .jsonl, .spacy) or a directory of such. May be repeated.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory that becomes the new teacher's.")
    ],
    gpu_id: Annotated[
        int | None,
        typer.Option(
            "--gpu-id",
            "-g",
            help="CUDA device, or -1 for the CPU. Left out: an accelerator where there is one.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", "-r", help="Go on from the newest checkpoint in the output.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace the run that the output holds.")
    ] = False,
) -> None:
    """Train a teacher encoder further on your own text.

    The whole encoder goes on learning to guess masked pieces, no labels needed, and so gets to know
    the words and the style of a domain before it teaches a student. A teacher without a masked-LM
    head, such as a sentence encoder or ELECTRA's discriminator, is given one, tied to its piece
    embeddings: then it can teach its distribution over pieces, too.

    The output directory becomes an ordinary Hugging Face model directory, like that of 'spacy
    distil encoder', and holds the same files beside the model. It is the teacher of the next run:

    \b
      python -m spacy distil adapt bert-base-uncased --corpus texts/ --output adapted
      python -m spacy distil encoder distil.cfg --output student --teacher.name adapted

    Any setting of a distillation config can be given as an option by its dotted name:

    \b
      ... --training.max_steps 1000 --training.learn_rate 5e-5 --corpus.block_size 512

    It is trained as students are: --resume and --force do what they do there.
    """
    with friendly_errors():
        from spacy_distil.distillation import distil_encoder

        distil_encoder(
            adapt_config(teacher, corpus),
            output,
            overrides=parse_config_overrides(ctx.args),
            gpu_id=gpu_id,
            resume=resume,
            force=force,
        )
