"""Forward and backward passes on made-up text, before the training."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.steps import EncoderStage
from spacy_distil.students.masking import Masking, batch_blocks


def try_stage(
    distiller: Distiller,
    stage: EncoderStage,
    accelerator: Accelerator,
    *,
    masking: Masking,
    block_size: int,
    n_blocks: int,
) -> None:
    """Add gradients of a stage's first step to the parameters.

    masking: on the device.
    block_size: pieces in a block.
    n_blocks: in the batch.
    """
    text = masking.ordinary[:1].cpu().numpy().repeat(block_size)
    blocks = batch_blocks([text] * n_blocks, range(n_blocks), pad_id=0, masking=masking)
    batch = masking(blocks.to(accelerator.device))
    with accelerator.autocast():
        losses = distiller(batch, stage.start, stage.objectives)
    losses.total.backward()


def has_unused_parameters(
    distiller: Distiller,
    stages: Sequence[EncoderStage],
    accelerator: Accelerator,
    *,
    masking: Masking,
    block_size: int,
) -> bool:
    """Check whether any stage leaves a parameter without a gradient, such as the student's head.

    The distiller is left as it was, without gradients. See `try_stage` for the arguments.
    """
    learning = [p for p in distiller.parameters() if p.requires_grad]
    try:
        for stage in stages:
            distiller.zero_grad(set_to_none=True)
            try_stage(
                distiller,
                stage,
                accelerator,
                masking=masking,
                block_size=block_size,
                n_blocks=1,
            )
            if any(parameter.grad is None for parameter in learning):
                return True
        return False
    finally:
        distiller.zero_grad(set_to_none=True)
