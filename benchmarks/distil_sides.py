"""The sides of `distil`: ours and the plain loop, each with models that go through the text."""

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

from benchmarks.distil_plain_loop import (
    PlainLoop,
    PlainSettings,
    deal_out,
    make_batches,
    make_rows,
    padded_length,
)
from benchmarks.distil_rows import OURS, Kind, PositionsTaught, Row, Shape, Size
from benchmarks.distil_text import Packed, Text
from spacy_distil.distillation.encoder.config import EncoderDistilConfig, load_config
from spacy_distil.distillation.encoder.corpus import Blocks
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.divergence import Divergence
from spacy_distil.distillation.encoder.loop import Meter, Trainer
from spacy_distil.distillation.encoder.run import prepare_models
from spacy_distil.distillation.encoder.shards import Shards, piece_type, write_shards
from spacy_distil.distillation.encoder.steps import (
    Stage,
    StepBlocks,
    plan_stages,
    plan_steps,
    prefetch,
)
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
    """Of one piece of text, by the length of what it stands in."""
    teacher = make_config(shape, vocabulary, shape.teacher_layers)
    student = make_config(shape, vocabulary, shape.layers)
    heads = mlm_head_flops(teacher) + mlm_head_flops(student, backward=True)

    def useful(length: int) -> float:
        encoders = encoder_flops(teacher, length) + encoder_flops(student, length, backward=True)
        return encoders + MASK_PROBABILITY * heads

    return useful


# Ways to go through the text


class Positions(NamedTuple):
    """computed: by the models. real: of these, no padding."""

    computed: int
    real: int


class Side(Protocol):
    """lengths: of the sequences that the text stands in, special pieces included."""

    lengths: list[int]

    def go(self, turn: int) -> Positions:
        """Go through the text once. turn: 0 for the first time."""


class Ours:
    """As `spacy distil encoder` takes the steps of an epoch."""

    def __init__(self, trainer: Trainer, blocks: StepBlocks, stage: Stage, steps: int) -> None:
        self.trainer = trainer
        self.blocks = blocks
        self.stage = stage
        self.steps = steps
        self.lengths = blocks.blocks.lengths(range(len(blocks.blocks))).tolist()
        self.device = trainer.accelerator.device
        names = list(trainer.distiller.objectives)
        self.meter = Meter(names, torch.zeros(len(names), device=self.device))

    def go(self, turn: int) -> Positions:
        computed = real = 0
        first = turn * self.steps
        divergence = Divergence(self.device)
        with closing(prefetch(self.blocks.__getitem__, range(first, first + self.steps))) as work:
            for step, rows in enumerate(work, first):
                norm = self.trainer.step(step, rows, self.stage, self.meter)
                divergence.note(step + 1, norm)
                computed += sum(portion.pieces.numel() for portion in rows.micro_batches)
                real += rows.n_real
        if divergence.bad_step() is not None:
            raise ValueError(f"{OURS}: the gradient is not finite.")
        return Positions(computed, real)


class Plain:
    """As the published script takes the steps of an epoch.

    rows: of the text. size: rows in a forward pass.
    """

    def __init__(
        self, loop: PlainLoop, rows: Sequence[np.ndarray], size: int, steps: int, *, by_length: bool
    ) -> None:
        self.loop = loop
        self.rows = rows
        self.size = size
        self.steps = steps
        self.by_length = by_length
        self.lengths = [len(row) for row in rows]

    def go(self, turn: int) -> Positions:
        batches = make_batches(self.rows, self.size, seed=turn, by_length=self.by_length)
        for some in deal_out(batches, self.steps):
            self.loop.step(some)
        computed = sum(len(b) * padded_length(b, bf16=self.loop.bf16) for b in batches)
        return Positions(computed, sum(self.lengths))


def make_sides(
    rows: Sequence[Row],
    packed: Packed,
    shape: Shape,
    size: Size,
    directory: Path,
    *,
    kind: Kind,
    bf16: bool,
    rounds: int,
) -> dict[str, Side]:
    """By the rows' titles. All students start from the same weights.

    directory: for the blocks. rounds: how often each will go through the text.
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
            sides[row.title] = make_ours(deepcopy(teacher), student, blocks, packed, config, kind)
            continue
        device = "cuda" if kind == "gpu" else "cpu"
        models = [teacher.to(device), student.to(device)]
        if row.onednn and is_faster(torch.device(device)):
            models[0] = deepcopy(teacher)
            for model in models:
                use_onednn(model)
        settings = PlainSettings(restrict_to_mask=row.positions == "masked")
        loop = PlainLoop(*models, special=special, settings=settings, bf16=bf16)
        sides[row.title] = Plain(loop, plain_rows, size.blocks, size.steps, by_length=row.by_length)
    return sides


def write_blocks(packed: Packed, directory: Path) -> Blocks:
    length = len(packed.blocks[0])
    dtype = piece_type(packed.text.vocabulary - 1)
    counts = write_shards(packed.blocks, directory, block_size=length, dtype=dtype)
    return Blocks(Shards(directory, *counts), np.arange(len(packed.blocks)))


def make_settings(
    size: Size,
    rounds: int,
    *,
    bf16: bool,
    positions: PositionsTaught = "masked",
    compiled: bool = False,
) -> EncoderDistilConfig:
    """Those of a run of ours over so many rounds. positions, compiled: see `Row`."""
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
    blocks: Blocks,
    packed: Packed,
    config: EncoderDistilConfig,
    kind: Kind,
) -> Ours:
    """What `distillation.run` makes of a config, but with these models and blocks."""
    training = config.training
    for objective in config.objectives.values():
        objective.prepare(teacher.config, student.config)
    # accelerate keeps one state per process, which may come from somebody with other settings.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=kind == "cpu", mixed_precision=training.mixed_precision)
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
    )
    return Ours(trainer, step_blocks, stages[0], len(blocks) // int(training.batch_sizes().at(0)))


def make_masking(text: Text, probability: float) -> Masking:
    is_special = torch.zeros(text.vocabulary, dtype=torch.bool)
    is_special[list(text.special)] = True
    return Masking(
        probability,
        seed=0,
        mask_id=text.special.mask,
        is_special=is_special,
        ordinary=(~is_special).nonzero().squeeze(1),
    )
