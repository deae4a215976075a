"""Choosing the number of blocks in a forward pass."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.steps import EncoderStage
from spacy_distil.distillation.encoder.trial import try_stage
from spacy_distil.errors import OutOfMemoryError
from spacy_distil.students.masking import Masking

# Maximum number of pieces in one forward pass on a CPU, where more do not make it faster.
MAX_PIECES_ON_CPU = 4096


def find_micro_batch(
    distiller: Distiller,
    stages: Sequence[EncoderStage],
    accelerator: Accelerator,
    *,
    masking: Masking,
    block_size: int,
    largest_step: int,
) -> int:
    """Find a number of blocks that fits into the memory of every process's device.

    On a GPU, it is found by trying. The largest step is then divided into equal parts.

    masking: on the device.
    block_size: pieces in a block.
    largest_step: blocks in the largest optimizer step, of all processes together.
    """
    share = -(-largest_step // accelerator.num_processes)
    if accelerator.device.type == "cpu":
        return max(1, min(share, MAX_PIECES_ON_CPU // block_size))
    if share == 1:
        return 1
    fitting = largest_that_fits(
        distiller, stages, accelerator, masking=masking, block_size=block_size, upper=share
    )
    fitting = int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())
    return equal_parts(share, fitting)


def equal_parts(whole: int, largest: int) -> int:
    """Divide a number into as few parts as possible, as equal as possible.

    RETURNS: the largest part.
    """
    n_parts = -(-whole // largest)
    return -(-whole // n_parts)


def largest_that_fits(
    distiller: Distiller,
    stages: Sequence[EncoderStage],
    accelerator: Accelerator,
    *,
    masking: Masking,
    block_size: int,
    upper: int,
) -> int:
    """Find the number of blocks that a backward pass of every stage has room for, by trying.

    The distiller is left as it was.

    upper: the largest number to try.
    """
    learning = [p for p in distiller.parameters() if p.requires_grad]
    # AdamW keeps two moments of each parameter, and several processes a buffer to send gradients.
    copies = 3 if accelerator.num_processes > 1 else 2
    reserved = [torch.empty_like(p) for p in learning for _ in range(copies)]
    # Gradients of earlier micro-batches are in memory, too.
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)

    @find_executable_batch_size(starting_batch_size=upper)
    def largest(size: int) -> int:
        for stage in stages:
            try_stage(
                distiller,
                stage,
                accelerator,
                masking=masking,
                block_size=block_size,
                n_blocks=size,
            )
        return size

    try:
        return int(largest())
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise OutOfMemoryError(
            f"not even one block of corpus.block_size = {block_size} pieces fits into the memory "
            f"of {accelerator.device}. Set a lower corpus.block_size, or a lower chunk_rows or "
            f"chunk_blocks of the objectives"
        ) from error
    finally:
        reserved.clear()
        for parameter in learning:
            parameter.grad = None
        gc.collect()
        torch.cuda.empty_cache()
