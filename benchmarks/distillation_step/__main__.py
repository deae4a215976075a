"""Pieces per second and utilisation of the hardware in distillation, ours against a plain loop.

    python -m benchmarks.distillation_step --text texts.jsonl --output benchmarks/ewt

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

`distil_rows.py` lists the ways to go through the text (`distil_text.py`), `distil_sides.py` makes
them, `distil_measure.py` times them, and `distil_results.py` says what came out.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from wasabi import msg

from benchmarks.distillation_step.timing import Matmul, measure
from benchmarks.distillation_step.summary import AIMS, STEM, about, make_table, read_results, save, summarize
from benchmarks.distillation_step.rows import DEFAULT_ROWS, ROWS, SIZES, Kind, Row, Shape, Size
from benchmarks.distillation_step.sides import make_sides, useful_flops
from benchmarks.distillation_step.text import pack_text, read_text, synthetic_text
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.report.process import cpu_environment


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


if __name__ == "__main__":
    typer.run(main)
