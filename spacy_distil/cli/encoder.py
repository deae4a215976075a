"""`spacy distil encoder`: distil a teacher encoder into a smaller student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    OVERRIDES,
    Code,
    Device,
    ForceRun,
    Resume,
    RunOutput,
    parse_overrides,
)
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import import_code


@distil_cli.command("encoder", context_settings=OVERRIDES)
def encoder_cli(
    ctx: typer.Context,
    config_path: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Config file; see 'init-config encoder'.")
    ],
    output: RunOutput,
    code: Code = None,
    gpu_id: Device = None,
    resume: Resume = False,
    force: ForceRun = False,
) -> None:
    """Distil a teacher encoder into a smaller student encoder.

    The student starts as some of the teacher's layers, and learns from the teacher on plain text,
    without labels. Its loss is a weighted sum of objectives, or several sums in stages. The default
    is DistilBERT's recipe: the teacher's distribution over pieces, the true pieces, and the
    direction of the last hidden states. Other objectives are the hidden states of any layers, and
    the relations of self-attention.

    The output directory is an ordinary Hugging Face model directory with a model card. Use it in
    spaCy pipelines (as "name" of the component "distil_transformer") or with AutoModel. It also
    holds the settings (distil.cfg), the results (distil.json), losses and held-out scores
    (log.jsonl), TensorBoard logs (logs/) and the tokenized corpus (cache/).

    Any setting of the config is an option, too, by its dotted name:

    \b
      python -m spacy distil init-config encoder encoder.cfg
      python -m spacy distil encoder encoder.cfg --output student \\
          --corpus.train texts/ --student.n_layers 3 --training.max_steps 5000

    A teacher without a masked-LM head, such as a sentence encoder, has no distribution over pieces.
    Switch that objective off, or give the teacher a head with 'spacy distil adapt':

    \b
      ... --objectives.soft_targets.weight 0

    Any of torch's launchers starts a run on several GPUs, on one machine or many.
    --training.batch_size counts the blocks of all of them together:

    \b
      torchrun --nproc-per-node 8 -m spacy distil encoder encoder.cfg --output student

    --resume continues a killed run. The student is then the same as after a run without
    interruption. A run that gets SIGTERM saves a checkpoint, and exits with 1. For workflows there
    is --resume --force: if settings, teacher and corpus are the same, it continues the run, or
    returns at once if the run has finished; if they are not, it starts over.
    """
    with friendly_errors():
        import_code(code)
        from spacy_distil.distillation import distil_encoder

        distil_encoder(
            config_path,
            output,
            overrides=parse_overrides(ctx.args),
            gpu_id=gpu_id,
            resume=resume,
            force=force,
        )
