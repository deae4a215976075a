"""The sides of the benchmark, ours and the plain loop, each with models of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from transformers import BertConfig, BertForMaskedLM

from benchmarks.distillation_step.plain_loop import (
    PlainLoop,
    PlainSettings,
    deal_out,
    make_batches,
    make_rows,
    padded_length,
)
from benchmarks.distillation_step.rows import OURS, Device, Positions, Shape, Size, StepRow
from benchmarks.distillation_step.text import Packed, Text
from spacy_distil.distillation.encoder.config import EncoderDistilConfig, load_config
from spacy_distil.distillation.encoder.corpus import Blocks, Mixture
from spacy_distil.distillation.encoder.devices import prepare_models
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.divergence import Divergence
from spacy_distil.distillation.encoder.meter import Meter
from spacy_distil.distillation.encoder.shards import Shards, piece_type, write_shards
from spacy_distil.distillation.encoder.steps import (
    EncoderStage,
    StepBlocks,
    plan_stages,
    plan_steps,
    prefetch,
)
from spacy_distil.distillation.encoder.trainer import Trainer
from spacy_distil.engines.onednn import is_faster, use_onednn
from spacy_distil.students.flops import encoder_flops, mlm_head_flops
from spacy_distil.students.masking import Masking

MASK_PROBABILITY = 0.15
OBJECTIVES = {
    "soft_targets": {
        "@distil_objectives": "spacy-distil.SoftTargets.v1",
        "weight": PlainSettings.soft_targets,
        "temperature": PlainSettings.temperature,
    },
    "masked_lm": {
        "@distil_objectives": "spacy-distil.MaskedLM.v1",
        "weight": PlainSettings.masked_lm,
    },
    "cosine": {"@distil_objectives": "spacy-distil.Cosine.v1", "weight": PlainSettings.cosine},
}


# Models


def make_config(shape: Shape, vocabulary: int, layers: int, dropout: float = 0.0) -> Any:
    """Make the config of a BERT."""
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, shape.width // 64),
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def useful_flops(shape: Shape, vocabulary: int) -> Callable[[int], float]:
    """Make a function that counts the useful operations for one piece of text, by the length of its
    sequence.
    """
    teacher = make_config(shape, vocabulary, shape.teacher_layers)
    student = make_config(shape, vocabulary, shape.layers)
    lm_heads = mlm_head_flops(teacher) + mlm_head_flops(student, backward=True)

    def useful(length: int) -> float:
        encoders = encoder_flops(teacher, length) + encoder_flops(student, length, backward=True)
        return encoders + MASK_PROBABILITY * lm_heads

    return useful


# Ways to process the text


class PositionCounts(NamedTuple):
    """Numbers of positions that the models computed, and of those that were no padding."""

    computed: int
    real: int

    def plus(self, other: PositionCounts) -> PositionCounts:
        return PositionCounts(self.computed + other.computed, self.real + other.real)


class Side(Protocol):
    """lengths: of the sequences that the text is in, special pieces included."""

    lengths: list[int]

    def process(self, turn: int) -> PositionCounts:
        """Process the text once. turn: 0 for the first time."""


class OurSide:
    """The steps of an epoch, as `spacy distil encoder` takes them."""

    def __init__(
        self, trainer: Trainer, blocks: StepBlocks, stage: EncoderStage, steps: int
    ) -> None:
        self.trainer = trainer
        self.blocks = blocks
        self.stage = stage
        self.steps = steps
        self.lengths = blocks.blocks.lengths(range(len(blocks.blocks))).tolist()
        self.device = trainer.accelerator.device
        names = list(trainer.distiller.objectives)
        self.meter = Meter(names, self.device)

    def process(self, turn: int) -> PositionCounts:
        computed = real = 0
        first = turn * self.steps
        divergence = Divergence(self.device)
        with closing(prefetch(self.blocks.__getitem__, range(first, first + self.steps))) as work:
            for step, batches in enumerate(work, first):
                norm = self.trainer.step(step, batches, self.stage, self.meter)
                divergence.note(step + 1, norm)
                computed += sum(batch.pieces.numel() for batch in batches.micro_batches)
                real += batches.n_real
        if divergence.bad_step() is not None:
            raise ValueError(f"{OURS}: the gradient is not finite.")
        return PositionCounts(computed, real)


class PlainSide:
    """The steps of an epoch, as the published script takes them."""

    def __init__(
        self, loop: PlainLoop, rows: Sequence[np.ndarray], size: int, steps: int, *, by_length: bool
    ) -> None:
        """rows: the text. size: number of rows per forward pass. steps: number per epoch."""
        self.loop = loop
        self.rows = rows
        self.size = size
        self.steps = steps
        self.by_length = by_length
        self.lengths = [len(row) for row in rows]

    def process(self, turn: int) -> PositionCounts:
        batches = make_batches(self.rows, self.size, seed=turn, by_length=self.by_length)
        for of_step in deal_out(batches, self.steps):
            self.loop.step(of_step)
        computed = sum(len(batch) * padded_length(batch, bf16=self.loop.bf16) for batch in batches)
        return PositionCounts(computed, sum(self.lengths))


def make_sides(
    rows: Sequence[StepRow],
    packed: Packed,
    shape: Shape,
    size: Size,
    directory: Path,
    *,
    device: Device,
    bf16: bool,
    rounds: int,
) -> dict[str, Side]:
    """Make the side of each row. All students start from the same weights.

    directory: for the blocks.
    rounds: number of times that each side will process the text.
    RETURNS: by the rows' titles.
    """
    vocabulary, special = packed.text.vocabulary, packed.text.special
    torch.manual_seed(0)
    teacher = BertForMaskedLM(make_config(shape, vocabulary, shape.teacher_layers))
    teacher.eval().requires_grad_(False)
    initial = BertForMaskedLM(make_config(shape, vocabulary, shape.layers)).state_dict()
    blocks = write_blocks(packed, directory)
    plain_rows = make_rows(packed.documents, shape.length, special)
    sides: dict[str, Side] = {}
    for row in rows:
        student = BertForMaskedLM(make_config(shape, vocabulary, shape.layers, row.dropout))
        student.load_state_dict(initial)
        if row.is_ours:
            config = make_settings(
                size, rounds, bf16=bf16, positions=row.positions, compiled=row.compiled
            )
            sides[row.title] = make_ours(deepcopy(teacher), student, blocks, packed, config, device)
            continue
        torch_device = torch.device("cuda" if device == "gpu" else "cpu")
        models = [teacher.to(torch_device), student.to(torch_device)]
        if row.onednn and is_faster(torch_device):
            models[0] = deepcopy(teacher)
            for model in models:
                use_onednn(model)
        settings = PlainSettings(restrict_to_mask=row.positions == "masked")
        loop = PlainLoop(*models, special=special, settings=settings, bf16=bf16)
        sides[row.title] = PlainSide(
            loop, plain_rows, size.blocks, size.steps, by_length=row.by_length
        )
    return sides


def write_blocks(packed: Packed, directory: Path) -> Mixture:
    """Write the blocks of the text to shards."""
    length = len(packed.blocks[0])
    dtype = piece_type(packed.text.vocabulary - 1)
    counts = write_shards(packed.blocks, directory, block_size=length, dtype=dtype)
    return Mixture({"": Blocks(Shards(directory, *counts), np.arange(len(packed.blocks)))})


def make_settings(
    size: Size,
    rounds: int,
    *,
    bf16: bool,
    positions: Positions = "masked",
    compiled: bool = False,
) -> EncoderDistilConfig:
    """Make the config of a run of ours.

    rounds: number of times that it processes the text.
    positions, compiled: see `StepRow`.
    """
    soft_targets = {**OBJECTIVES["soft_targets"], "positions": positions}
    return load_config(
        {
            "teacher": {"name": "random"},
            "corpus": {"train": ["text"], "mask_probability": MASK_PROBABILITY},
            "objectives": {**OBJECTIVES, "soft_targets": soft_targets},
            "training": {
                "max_steps": rounds * size.steps,
                "batch_size": size.blocks * size.accumulate,
                "micro_batch": size.blocks,
                "mixed_precision": "bf16" if bf16 else "no",
                "compile": compiled,
            },
        }
    )


def make_ours(
    teacher: Any,
    student: Any,
    blocks: Mixture,
    packed: Packed,
    config: EncoderDistilConfig,
    device: Device,
) -> OurSide:
    """Prepare a run as `spacy distil encoder` does, but with these models and blocks."""
    training = config.training
    for objective in config.objectives.values():
        objective.prepare(teacher.config, student.config)
    # accelerate keeps one state per process, and another run may have left other settings in it.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=training.mixed_precision)
    masking = make_masking(packed.text, config.mask_probability)
    prepare_models(teacher, student, accelerator)
    distiller = Distiller(teacher, student, config.objectives)
    trainer = Trainer.prepare(distiller, training, masking, accelerator)
    distiller.train()
    starts = plan_steps(training, len(blocks))
    stages = plan_stages(config, len(starts) - 1)
    step_blocks = StepBlocks(
        blocks,
        starts,
        masking=masking,
        pad_id=packed.text.special.pad,
        seed=training.seed,
        micro_batch=int(training.micro_batch),
        pin=device == "gpu",
    )
    return OurSide(
        trainer, step_blocks, stages[0], len(blocks) // int(training.batch_sizes().at(0))
    )


def make_masking(text: Text, probability: float) -> Masking:
    """Make the masking of a run of ours."""
    is_special = torch.zeros(text.vocabulary, dtype=torch.bool)
    is_special[list(text.special)] = True
    return Masking(
        probability,
        seed=0,
        mask_id=text.special.mask,
        is_special=is_special,
        ordinary=(~is_special).nonzero().squeeze(1),
    )
