"""Pieces per second and utilisation of the hardware in distillation, ours against a plain loop.

    python -m benchmarks.distil --text texts.jsonl --output benchmarks/ewt

BERT-base teaches 6 layers of its shape, by DistilBERT's recipe: soft targets, masked LM and cosine;
all weights are random. Ours is what `spacy distil encoder` does in a step, on blocks of 512 pieces.
The plain loop (`distil_plain_loop.py`) is written as the script published with DistilBERT is: a
document per row, rows of about the same length in a batch and padded to the longest of it, the
softmax over the whole vocabulary at every position, each loss read as a number in each step. Both
have the attention kernels that transformers takes by default, the plain loop the AdamW that torch
does.

All go through the same text in the same number of optimizer steps. They take turns in one process,
one round after the other, and the ratio is that of each round. What is counted is pieces of text:
neither padding nor the special pieces around it. Utilisation is the share of the fastest matrix
products seen in the same run that useful operations come to: the teacher forward, the student
forward and backward, and the head of both at the masked pieces, at the length that the text stands
in.

What was measured on a GPU stays in the saved results when a CPU is measured, and the other way
round.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import typer
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM
from wasabi import msg

from benchmarks.distil_plain_loop import (
    BERT_SPECIAL,
    PlainLoop,
    PlainSettings,
    Special,
    deal_out,
    make_batches,
    make_rows,
    padded_length,
)
from benchmarks.teaching.speed import Measured, now
from spacy_distil.distillation.batches import Masking
from spacy_distil.distillation.config import DistilConfig, load_config
from spacy_distil.distillation.corpus import Blocks
from spacy_distil.distillation.distiller import Distiller
from spacy_distil.distillation.divergence import Divergence
from spacy_distil.distillation.flops import encoder_flops, head_flops
from spacy_distil.distillation.loop import Meter, Trainer
from spacy_distil.distillation.packing import pack, tokenize
from spacy_distil.distillation.reading import find_files, read_parts
from spacy_distil.distillation.run import prepare_models
from spacy_distil.distillation.shards import Shards, piece_type, write_shards
from spacy_distil.distillation.steps import Stage, StepBlocks, ahead, plan_stages, plan_steps
from spacy_distil.engines.onednn import is_faster, use_onednn
from spacy_distil.errors import ConfigError, CorpusError, friendly_errors
from spacy_distil.report.layout import TIMES, count, measured_on, with_range
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.report.process import cpu_environment
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table

STEM = "distil"
OURS, PLAIN = "spacy-distil", "plain loop"
MASK_PROBABILITY = 0.15
# Of the synthetic text: log-normal lengths of documents, about those of paragraphs and articles.
MEDIAN_PIECES, SIGMA = 180, 0.8
# Side of the square matrices whose products measure a GPU, and how many of them at a time.
GPU_SIDE, GPU_PRODUCTS = 4096, 50
NOT_YET = "not yet measured"

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


Kind = Literal["cpu", "gpu"]
PositionsTaught = Literal["masked", "all"]


@dataclass(frozen=True)
class Row:
    """One way to go through the text.

    key: how `--rows` names it.
    is_ours: whether it is a step of ours, and not of the plain loop.
    positions: where soft targets are learned: at masked pieces, or at all.
    by_length: of the plain loop: whether rows of about the same length make a batch, as the
        published script has it by default.
    dropout: of the student.
    onednn: whether the plain loop's linear layers are oneDNN's where ours are.
    """

    key: str
    title: str
    is_ours: bool = False
    positions: PositionsTaught = "all"
    by_length: bool = False
    dropout: float = 0.0
    onednn: bool = False


ROWS = (
    Row("ours", OURS, is_ours=True, positions="masked"),
    Row("all", f"{OURS}, soft targets at all pieces", is_ours=True),
    Row("plain", PLAIN, by_length=True),
    Row("masked", f"{PLAIN}, soft targets at masked", positions="masked", by_length=True),
    Row("ungrouped", f"{PLAIN}, rows in random order"),
    Row("dropout", f"{PLAIN}, dropout 0.1", by_length=True, dropout=0.1),
    Row("onednn", f"{PLAIN}, linear layers as ours", by_length=True, onednn=True),
)
DEFAULT_ROWS = "ours,plain,masked,ungrouped"


@dataclass(frozen=True)
class Aim:
    """ratio: least pieces/s of ours, of the plain loop's. utilisation: least; `None` for none."""

    ratio: float
    utilisation: float | None


@dataclass(frozen=True)
class Size:
    """blocks: in one forward pass. accumulate: forward passes in an optimizer step. steps: of a
    round.
    """

    blocks: int
    accumulate: int
    steps: int


AIMS: dict[Kind, Aim] = {"cpu": Aim(1.5, None), "gpu": Aim(3.0, 0.4)}
SIZES: dict[Kind, Size] = {"cpu": Size(4, 2, 2), "gpu": Size(64, 1, 20)}
COMMANDS: dict[Kind, str] = {
    "cpu": "python -m benchmarks.distil --cpu --output benchmarks/ewt",
    "gpu": "python -m benchmarks.distil --gpu --output benchmarks/ewt",
}


@dataclass(frozen=True)
class Shape:
    """layers: of teacher and student. width: of both. length: pieces in a block at most."""

    teacher_layers: int
    layers: int
    width: int
    length: int


def main(
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text files, or directories of such; none: synthetic text"),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Of the text: a directory or a hub name")
    ] = "assets/teacher",
    rows: Annotated[
        str, typer.Option(help=f"Keys between commas: {', '.join(row.key for row in ROWS)}")
    ] = DEFAULT_ROWS,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--cpu", help="Where; unset: a GPU if there is one")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, bf16, or auto: bf16 on a GPU, float32 on a CPU")
    ] = "auto",
    blocks: Annotated[int, typer.Option(help="Blocks, or rows, in a forward pass; 0: auto")] = 0,
    accumulate: Annotated[int, typer.Option(help="Forward passes of a step; 0: auto")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a round; 0: auto")] = 0,
    repeats: Annotated[int, typer.Option(help="Rounds; even: as many each way", min=1)] = 4,
    threads: Annotated[int, typer.Option(help="Threads", min=1)] = 2,
    teacher_layers: Annotated[int, typer.Option(help="Of the teacher", min=1)] = 12,
    layers: Annotated[int, typer.Option(help="Of the student", min=1)] = 6,
    width: Annotated[int, typer.Option(help="Hidden size of both", min=1)] = 768,
    length: Annotated[int, typer.Option(help="Pieces in a block", min=8)] = 512,
    vocabulary: Annotated[int, typer.Option(help="Pieces, of synthetic text", min=200)] = 30522,
    output: Annotated[
        Path | None, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")
    ] = None,
) -> None:
    """Measure, print the table and save it."""
    with friendly_errors():
        chosen = choose_rows(rows)
        kind = choose_kind(gpu)
        if kind == "cpu":
            os.environ.update(cpu_environment(threads))
        torch.set_num_threads(threads)
        bf16 = choose_precision(precision, kind)
        default = SIZES[kind]
        size = Size(
            blocks or default.blocks, accumulate or default.accumulate, steps or default.steps
        )
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        shape = Shape(teacher_layers, layers, width, length)
        n_blocks = size.blocks * size.accumulate * size.steps
        source = (
            read_text(text, tokenizer, n_blocks * length)
            if text
            else synthetic_text(vocabulary, n_blocks * length)
        )
        packed = pack_text(source, length, n_blocks)
        with TemporaryDirectory() as directory:
            sides = make_sides(
                chosen,
                packed,
                shape,
                size,
                Path(directory),
                kind=kind,
                bf16=bf16,
                rounds=repeats + 1,
            )
            matmul = Matmul(kind, bf16=bf16, width=width, positions=size.blocks * length)
            found = measure(sides, packed.n_pieces, matmul.rate, repeats, log=msg.info)
    result = {
        "device": torch.cuda.get_device_name() if kind == "gpu" else None,
        "precision": "bf16" if bf16 else "float32",
        "threads": threads,
        "shape": asdict(shape),
        "size": asdict(size),
        "text": source.name,
        "documents": len(packed.documents),
        "pieces": packed.n_pieces,
        "rows": [asdict(row) for row in chosen],
        **summarize(AIMS[kind], found, useful_flops(shape, source.vocabulary)),
        "machine": describe_machine(),
        "date": date,
        "command": command_line(),
    }
    results: dict[Kind, Any] = {"cpu": None, "gpu": None}
    if output is not None:
        results |= read_results(output)
    results[kind] = result
    print(make_table({kind: result}).to_text(), about(result), sep="\n")
    if output is not None:
        save(results, output)


def choose_rows(keys: str) -> list[Row]:
    """The rows of these keys, in the order of `ROWS`."""
    chosen = {key.strip() for key in keys.split(",") if key.strip()}
    known = [row.key for row in ROWS]
    if not chosen or not chosen.issubset(known):
        raise ConfigError(f"--rows {keys!r}: expected some of {', '.join(known)}.")
    return [row for row in ROWS if row.key in chosen]


def choose_kind(gpu: bool | None) -> Kind:
    there = torch.cuda.is_available()
    if gpu and not there:
        raise ConfigError(
            f"--gpu: torch {torch.__version__} sees no CUDA GPU. Leave --gpu out to take what "
            f"there is, or give --cpu"
        )
    return "gpu" if there and gpu is not False else "cpu"


def choose_precision(precision: str, kind: Kind) -> bool:
    """Whether both compute in bfloat16."""
    if precision not in ("auto", "float32", "bf16"):
        raise ConfigError(f"--precision {precision!r}: expected auto, float32 or bf16")
    return precision == "bf16" or (precision == "auto" and kind == "gpu")


# Text


@dataclass(frozen=True)
class Text:
    """name: what it is. documents: their pieces, without special ones. vocabulary: its size."""

    name: str
    documents: list[np.ndarray]
    vocabulary: int
    special: Special


@dataclass(frozen=True)
class Packed:
    """The same text twice: in blocks that are full, and in documents.

    blocks: ids of pieces, special ones included.
    documents: without special pieces; the last one may be cut.
    """

    blocks: list[list[int]]
    documents: list[np.ndarray]
    text: Text

    @property
    def n_pieces(self) -> int:
        return sum(map(len, self.documents))


def synthetic_text(vocabulary: int, n_pieces: int, *, seed: int = 0) -> Text:
    """Random pieces in documents of log-normal length, at least `n_pieces` in all."""
    rng = np.random.default_rng(seed)
    special = BERT_SPECIAL
    ordinary = np.setdiff1d(np.arange(vocabulary), special)
    documents: list[np.ndarray] = []
    total = 0
    while total < n_pieces:
        length = max(1, round(MEDIAN_PIECES * np.exp(SIGMA * rng.standard_normal())))
        documents.append(rng.choice(ordinary, length))
        total += length
    name = (
        f"synthetic text (log-normal lengths of documents, median {MEDIAN_PIECES} pieces, "
        f"sigma {SIGMA})"
    )
    return Text(name, documents, vocabulary, special)


def read_text(paths: Sequence[Path], tokenizer: str, n_pieces: int) -> Text:
    """Documents from the beginning of each file, at least `n_pieces` in all, as far as there is
    text.

    paths: files, or directories of such.
    """
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.backend_tokenizer.no_truncation()
    loaded.backend_tokenizer.no_padding()
    special = Special(
        loaded.pad_token_id, loaded.cls_token_id, loaded.sep_token_id, loaded.mask_token_id
    )
    files = find_files(paths, setting="--text")
    documents: list[np.ndarray] = []
    for file in files:
        left = -(-n_pieces // len(files))
        whole: list[int] = []
        for pieces, ends in tokenize(read_parts(file), loaded):
            whole += pieces
            if ends and whole:
                documents.append(np.array(whole))
                left -= len(whole)
                whole = []
            if left <= 0:
                break
    order = np.random.default_rng(0).permutation(len(documents))
    name = ", ".join(file.name for file in files)
    return Text(name, [documents[i] for i in order], len(loaded), special)


def pack_text(text: Text, length: int, n_blocks: int) -> Packed:
    """As many full blocks as these, and the documents that they hold."""
    stream = ((document.tolist(), True) for document in text.documents)
    special = text.special
    packed = pack(stream, block_size=length, first=special.first, last=special.last)
    blocks = list(islice(packed, n_blocks))
    if len(blocks) < n_blocks or len(blocks[-1]) < length:
        raise CorpusError(
            f"{text.name}: {sum(map(len, text.documents)):,} pieces are too few for {n_blocks:,} "
            f"blocks of {length}. Give more --text (an even share is taken from each file), or "
            f"fewer --steps"
        )
    ends = (special.first, special.last)
    left = sum(piece not in ends for block in blocks for piece in block)
    documents = []
    for document in text.documents:
        documents.append(document[:left])
        left -= len(documents[-1])
        if not left:
            break
    return Packed(blocks, documents, text)


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
    heads = head_flops(teacher) + head_flops(student, backward=True)

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
        with closing(ahead(self.blocks.__getitem__, range(first, first + self.steps))) as work:
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
            config = make_settings(size, rounds, bf16=bf16, positions=row.positions)
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
    size: Size, rounds: int, *, bf16: bool, positions: PositionsTaught = "masked"
) -> DistilConfig:
    """Those of a run of ours over so many rounds. positions: of soft targets."""
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
            },
        }
    )


def make_ours(
    teacher: Any, student: Any, blocks: Blocks, packed: Packed, config: DistilConfig, kind: Kind
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


# Measuring


class Matmul:
    """Products of matrices as fast as the hardware makes them: on a GPU of large squares, on a CPU
    of the shapes of a layer, by the fastest library.

    positions, width: of the layer's input.
    """

    def __init__(self, kind: Kind, *, bf16: bool, width: int, positions: int) -> None:
        dtype = torch.bfloat16 if bf16 else torch.float32
        device = torch.device("cuda" if kind == "gpu" else "cpu")
        n, shapes = positions, [*[(width, width)] * 4, (width, 4 * width), (4 * width, width)]
        if kind == "gpu":
            n, shapes = GPU_SIDE, [(GPU_SIDE, GPU_SIDE)] * GPU_PRODUCTS
        self.flops = sum(2.0 * n * n_in * n_out for n_in, n_out in shapes)
        self.inputs = {n_in: torch.randn(n, n_in, device=device, dtype=dtype) for n_in, _ in shapes}
        layers = [
            torch.nn.Linear(*shape, bias=False, device=device, dtype=dtype) for shape in set(shapes)
        ]
        by_shape = {(layer.in_features, layer.out_features): layer for layer in layers}
        self.libraries = [[by_shape[shape] for shape in shapes]]
        if is_faster(device):
            other = deepcopy(self.libraries[0])
            for layer in set(other):
                use_onednn(layer)
            self.libraries.append(other)

    def rate(self, trials: int = 3) -> float:
        """The best of some trials, in operations per second."""
        seconds = []
        with torch.inference_mode():
            for layers in self.libraries * trials:
                started = now()
                for layer in layers:
                    layer(self.inputs[layer.in_features])
                seconds.append(now() - started)
        return self.flops / min(seconds)


@dataclass(frozen=True)
class Found:
    """measured: pieces of text are its words.
    positions: of all rounds, by side.
    lengths: by side, see `Side`.
    matmul: the fastest products of each round, in operations per second.
    """

    measured: Measured
    positions: dict[str, Positions]
    lengths: dict[str, list[int]]
    matmul: list[float]


def measure(
    sides: Mapping[str, Side],
    n_pieces: int,
    rate: Callable[[], float],
    rounds: int,
    *,
    log: Callable[[str], None],
) -> Found:
    """Time each side's way through the text in each round; a round before the first warms up. Every
    second round goes backwards.

    n_pieces: of the text. rate: of products of matrices.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    positions = {name: Positions(0, 0) for name in sides}
    rates = []
    for turn in range(rounds + 1):
        log(f"round {turn} of {rounds}" if turn else "warm-up")
        found = rate()
        if turn:
            rates.append(found)
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            gc.collect()
            started = now()
            gone = sides[name].go(turn)
            if turn:
                seconds[name].append(now() - started)
                before = positions[name]
                positions[name] = Positions(
                    before.computed + gone.computed, before.real + gone.real
                )
    lengths = {name: side.lengths for name, side in sides.items()}
    return Found(Measured(seconds, [n_pieces] * rounds), positions, lengths, rates)


# What is said of it


def summarize(aim: Aim, found: Found, useful: Callable[[int], float]) -> dict[str, Any]:
    """For JSON. Utilisation is that of the best rate of products in the run.

    useful: operations of a piece by the length of what it stands in.
    """
    measured, best = found.measured, max(found.matmul)
    speeds = {name: measured.words_per_second(name) for name in measured.seconds}
    flops = {
        # Pieces are many where sequences are long: a mean over pieces, not over sequences.
        name: sum(length * useful(length) for length in lengths) / sum(lengths)
        for name, lengths in found.lengths.items()
    }
    utilisation = {name: scaled(speeds[name], flops[name] / best) for name in speeds}
    ratio = {
        name: measured.ratio(name, PLAIN) for name in speeds if PLAIN in speeds and name != PLAIN
    }
    return {
        **asdict(measured),
        "pieces_per_second": _plain(speeds),
        "ratio": _plain(ratio),
        "padding": {
            name: 1 - positions.real / positions.computed
            for name, positions in found.positions.items()
        },
        "flops_per_piece": flops,
        "matmul_flops_per_second": found.matmul,
        "utilisation": _plain(utilisation),
        "aim": asdict(aim),
        "met": {
            "ratio": ratio[OURS].median >= aim.ratio if OURS in ratio else None,
            "utilisation": (
                utilisation[OURS].median >= aim.utilisation
                if OURS in utilisation and aim.utilisation is not None
                else None
            ),
        },
    }


def scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.min * factor, spread.max * factor)


def _plain(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: asdict(spread) for name, spread in spreads.items()}


def make_table(results: Mapping[Kind, Any]) -> Table:
    """A row for each side on each kind of device, the verdicts in that of ours.

    results: as `summarize` has them; `None` for a kind that was not measured.
    """
    rows = []
    for kind, result in results.items():
        if result is None:
            rows.append([f"{kind.upper()}: `{COMMANDS[kind]}`", NOT_YET, *[""] * 7])
            continue
        for name in result["seconds"]:
            speed = with_range(Spread(**result["pieces_per_second"][name]), "{:,.0f}")
            used = with_range(scaled(Spread(**result["utilisation"][name]), 100), "{:.1f}")
            ratio = result["ratio"].get(name)
            cells = [with_range(Spread(**ratio), "{:.2f}") if ratio else "", "", ""]
            used_cells = [used, "", ""]
            if name == OURS:
                aim, met = result["aim"], result["met"]
                cells[1:] = _verdict(aim["ratio"], "{:g}", met["ratio"])
                share = aim["utilisation"]
                used_cells[1:] = _verdict(share and 100 * share, "{:g}", met["utilisation"])
            padding = f"{100 * result['padding'][name]:.1f}"
            rows.append([f"{kind.upper()}: {name}", speed, *cells, *used_cells, padding])
    aims = ["at least", "met"]
    header = ["", "pieces/s", f"{TIMES} {PLAIN}", *aims, "utilisation, %", *aims, "padding, %"]
    return Table(title="Distillation, pieces of text per second", header=header, rows=rows)


def _verdict(aim: float | None, form: str, met: bool | None) -> list[str]:
    if aim is None:
        return ["", ""]
    return [form.format(aim), "" if met is None else "yes" if met else "no"]


def about(result: Mapping[str, Any]) -> str:
    """How it was measured."""
    shape, size, flops = result["shape"], result["size"], result["flops_per_piece"]
    n_blocks = size["blocks"] * size["accumulate"] * size["steps"]
    side = OURS if OURS in flops else next(iter(flops))
    device = f"{result['device']}, " if result["device"] else ""
    return (
        f"{device}{result['precision']}, {count(result['threads'], 'thread')} of "
        f"torch. Teacher of {shape['teacher_layers']} layers, student of {shape['layers']}, width "
        f"{shape['width']}, random weights. {count(result['documents'], 'document')} of "
        f"{result['text']}: {result['pieces']:,} pieces, which fill {count(n_blocks, 'block')} of "
        f"{shape['length']}; {count(size['blocks'], 'block')}, or rows of the {PLAIN}, in a "
        f"forward pass, {count(size['steps'], 'optimizer step')} in a round. Pieces/s: median "
        f"(range) of {count(len(result['words']), 'round')} in turns, the ratio is that of each "
        f"round. Useful operations: {flops[side] / 1e6:,.3g} million a piece ({side}); "
        f"utilisation is their share of the fastest products of matrices in the run, "
        f"{max(result['matmul_flops_per_second']) / 1e12:,.3g} Tflop/s. Ours learns soft targets "
        "at masked pieces, the plain loop at all, but where a row says otherwise."
    )


def read_results(output: Path) -> dict[Kind, Any]:
    """What was measured before, by kind of device."""
    path = output / f"{STEM}.json"
    if not path.is_file():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    return {kind: saved.get(kind) for kind in AIMS}


def save(results: Mapping[Kind, Any], output: Path) -> None:
    """Write the JSON file and the Markdown file."""
    parts = [make_table(results).to_markdown()]
    for kind, result in results.items():
        if result is not None:
            where = measured_on(result["machine"], result["date"])
            parts.append(f"{kind.upper()}: {about(result)} {where}")
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2)
    (output / f"{STEM}.json").write_text(text + "\n", encoding="utf-8")
    (output / f"{STEM}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    msg.good(f"Saved {STEM}.json and {STEM}.md to {output}")


if __name__ == "__main__":
    typer.run(main)
