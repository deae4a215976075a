"""How many blocks go through the models at once."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.steps import Stage
from spacy_distil.errors import OutOfMemoryError
from spacy_distil.students.masking import Masking, batch_blocks

# Pieces in one forward pass: more do not make it faster.
ENOUGH_ON_CPU, ENOUGH_ON_GPU = 4096, 65536


def find_micro_batch(
    distiller: Distiller,
    stages: Sequence[Stage],
    accelerator: Accelerator,
    *,
    masking: Masking,
    block_size: int,
    largest_step: int,
) -> int:
    """The number of blocks that fits into the memory of every process's device, and no more than
    are of use. On a GPU it is found by trying.

    masking: on the device.
    largest_step: blocks in the largest optimizer step, over all processes.
    """
    share = -(-largest_step // accelerator.num_processes)
    enough = ENOUGH_ON_CPU if accelerator.device.type == "cpu" else ENOUGH_ON_GPU
    most = max(1, min(share, enough // block_size))
    if accelerator.device.type == "cpu" or most == 1:
        return most
    found = largest_that_fits(
        distiller, stages, accelerator, masking=masking, block_size=block_size, most=most
    )
    return int(accelerator.gather(torch.tensor([found], device=accelerator.device)).min())


def largest_that_fits(
    distiller: Distiller,
    stages: Sequence[Stage],
    accelerator: Accelerator,
    *,
    masking: Masking,
    block_size: int,
    most: int,
) -> int:
    """The number of blocks, at most `most`, that a backward pass of every stage has room for, found
    by trying. The distiller is left as it was.
    """
    learning = [p for p in distiller.parameters() if p.requires_grad]
    # Room for what AdamW keeps of each parameter, and for what processes send each other.
    kept = "mvb" if accelerator.num_processes > 1 else "mv"
    ballast = [torch.empty_like(p) for p in learning for _ in kept]
    # While a portion goes through the models, there are the gradients of those before it.
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)

    @find_executable_batch_size(starting_batch_size=most)
    def largest(size: int) -> int:
        text = masking.ordinary[:1].cpu().numpy().repeat(block_size)
        rows = batch_blocks([text] * size, range(size), pad_id=0, masking=masking)
        for stage in stages:
            batch = masking(rows.to(accelerator.device))
            with accelerator.autocast():
                losses = distiller(batch, stage.first, stage.objectives)
            distiller.total({n: loss.sum for n, loss in losses.items()}, stage.first).backward()
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
        ballast.clear()
        for parameter in learning:
            parameter.grad = None
        gc.collect()
        torch.cuda.empty_cache()
