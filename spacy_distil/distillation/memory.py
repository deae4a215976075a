"""How many blocks go through the models at once."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from spacy_distil.distillation.batches import Masking, make_rows
from spacy_distil.distillation.distiller import Distiller
from spacy_distil.distillation.steps import Stage
from spacy_distil.errors import OutOfMemoryError

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

    # Room for what AdamW keeps of each parameter.
    ballast = [torch.empty_like(p) for p in distiller.parameters() if p.requires_grad for _ in "mv"]

    @find_executable_batch_size(starting_batch_size=most)
    def largest(size: int) -> int:
        text = masking.ordinary[:1].cpu().numpy().repeat(block_size)
        rows = make_rows([text] * size, range(size), pad_id=0, masking=masking)
        for stage in stages:
            batch = masking(rows.to(accelerator.device))
            with accelerator.autocast():
                losses = distiller(batch, stage.first, stage.objectives)
            distiller.total({n: loss.sum for n, loss in losses.items()}, stage.first).backward()
        return size

    try:
        found = largest()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise OutOfMemoryError(
            f"not even one block of corpus.block_size = {block_size} pieces fits into the memory "
            f"of {accelerator.device}. Set a lower corpus.block_size, or a lower chunk_rows or "
            f"chunk_blocks of the objectives"
        ) from error
    ballast.clear()
    for parameter in distiller.parameters():
        parameter.grad = None
    gc.collect()
    torch.cuda.empty_cache()
    return int(accelerator.gather(torch.tensor([found], device=accelerator.device)).min())
