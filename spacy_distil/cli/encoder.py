"""`spacy distil encoder`: distil a teacher encoder into a smaller student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import import_code, parse_config_overrides

from spacy_distil.cli import distil_cli
from spacy_distil.errors import friendly_errors


@distil_cli.command(
    "encoder",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def encoder_cli(
    ctx: typer.Context,
    config_path: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="Config file; see 'init-config encoder'."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory that becomes the student's.")
    ],
    code_path: Annotated[
        Path | None,
        typer.Option("--code", "-c", help="Python file with registered functions to import."),
    ] = None,
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
    """Distil a teacher encoder into a smaller student encoder.

    The student is made of some of the teacher's layers, weights included, and is then taught on
    plain text, no labels needed, to do as the teacher does. What "as" means is a weighted sum of
    objectives, or several in stages: the teacher's distribution over pieces, the true pieces, the
    direction of the last hidden states, which together are DistilBERT's recipe and the default;
    hidden states of any layers; relations of self-attention.

    The output directory becomes an ordinary Hugging Face model directory with a model card, for
    spaCy pipelines ("name" of the component "distil_transformer") or for AutoModel. Beside the
    model lie the settings (distil.cfg), results (distil.json), losses and held-out scores
    (log.jsonl), TensorBoard logs (logs/) and the tokenised corpus (cache/).

    Any setting of the config can be given as an option by its dotted name:

    \b
      python -m spacy distil init-config encoder distil.cfg
      python -m spacy distil encoder distil.cfg --output student \\
          --corpus.train texts/ --student.n_layers 3 --training.max_steps 5000

    A teacher without a masked-LM head, such as a sentence encoder, teaches all but its distribution
    over pieces; 'spacy distil adapt' gives it a head:

    \b
      ... --objectives.soft_targets.weight 0

    Several GPUs, on one machine or many, by any launcher of torch's; --training.batch_size is over
    all of them:

    \b
      torchrun --nproc-per-node 8 -m spacy distil encoder distil.cfg --output student

    A run that was killed goes on with --resume, and ends with the same student as one that was
    not; one that gets SIGTERM saves a checkpoint first, and exits with 1. With --resume --force
    a run goes on, or returns at once where it has finished, if settings, teacher and corpus are the
    same, and starts over if they are not: what a workflow wants.
    """
    with friendly_errors():
        import_code(code_path)
        from spacy_distil.distillation import distil_encoder

        distil_encoder(
            config_path,
            output,
            overrides=parse_config_overrides(ctx.args),
            gpu_id=gpu_id,
            resume=resume,
            force=force,
        )
