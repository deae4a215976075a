"""Choosing the number of blocks in a forward pass."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.steps import EncoderStage
from spacy_distil.errors import OutOfMemoryError
from spacy_distil.students.masking import Masking, batch_blocks

# Maximum number of pieces in one forward pass. More do not make it faster.
MAX_PIECES_ON_CPU, MAX_PIECES_ON_GPU = 4096, 65536


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

    A larger number would not make training faster, or would not fit. On a GPU, it is found by
    trying.

    masking: on the device.
    block_size: pieces in a block.
    largest_step: blocks in the largest optimizer step, of all processes together.
    """
    share = -(-largest_step // accelerator.num_processes)
    is_cpu = accelerator.device.type == "cpu"
    max_pieces = MAX_PIECES_ON_CPU if is_cpu else MAX_PIECES_ON_GPU
    upper = max(1, min(share, max_pieces // block_size))
    if is_cpu or upper == 1:
        return upper
    fitting = largest_that_fits(
        distiller, stages, accelerator, masking=masking, block_size=block_size, upper=upper
    )
    return int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())


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
        text = masking.ordinary[:1].cpu().numpy().repeat(block_size)
        blocks = batch_blocks([text] * size, range(size), pad_id=0, masking=masking)
        for stage in stages:
            batch = masking(blocks.to(accelerator.device))
            with accelerator.autocast():
                losses = distiller(batch, stage.start, stage.objectives)
            distiller.total({n: loss.sum for n, loss in losses.items()}, stage.start).backward()
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
