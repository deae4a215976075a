"""Measure pieces/s and utilization of the hardware in encoder distillation, against a plain loop.

    python -m benchmarks.distillation_step --text texts.jsonl \\
        --output benchmarks/distillation_step/results

A BERT-base teaches a student of 6 layers by DistilBERT's recipe: soft targets, masked LM and
cosine. All weights are random. Ours takes a step as `spacy distil encoder` does, on blocks of 512
pieces. The plain loop (`plain_loop.py`) works like the script published with DistilBERT: one
document per row, batches of rows with similar lengths, padded to the longest row, the softmax over
the whole vocabulary at every position, and each loss read as a number in each step. Both use the
attention kernels that transformers chooses by default. The plain loop uses torch's default AdamW.

All sides process the same text in the same number of optimizer steps. They take turns in one
process, and the ratio is taken round by round. Only pieces of text count, not padding or the
special pieces. Utilization is the rate of useful operations, as a share of the fastest matrix
products seen in the same run. Useful operations are the forward pass of the teacher, the forward
and backward pass of the student, and both masked-LM heads at the masked pieces, in sequences as
long as the text has.

Results of a GPU stay in the files if a CPU is measured later, and the reverse.

`rows.py` lists the ways to process the text (`text.py`), `sides.py` makes them, `timing.py` times
them, and `summary.py` makes the table.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from wasabi import msg

from benchmarks.common.options import OptionalOutput, Repeats, Threads, choose_rows
from benchmarks.common.results import timestamp
from benchmarks.distillation_step.rows import (
    DEFAULT_ROWS,
    ROWS,
    SIZES,
    Device,
    Shape,
    Size,
)
from benchmarks.distillation_step.sides import make_sides, useful_flops
from benchmarks.distillation_step.summary import (
    TARGETS,
    about,
    make_table,
    read_results,
    save,
    summarize,
)
from benchmarks.distillation_step.text import pack_text, read_text, synthetic_text
from benchmarks.distillation_step.timing import MatrixProducts, measure
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.report.process import cpu_environment


def main(
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text files, or directories of text files; left out: synthetic text"),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Tokenizer for --text: a directory or a hub name")
    ] = "assets/teacher",
    rows: Annotated[
        str,
        typer.Option(help=f"Some of {', '.join(row.key for row in ROWS)}, separated by commas"),
    ] = DEFAULT_ROWS,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--cpu", help="Device; left out: a GPU if there is one")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, bf16, or auto: bf16 on a GPU, float32 on a CPU")
    ] = "auto",
    blocks: Annotated[int, typer.Option(help="Blocks, or rows, per forward pass; 0: auto")] = 0,
    accumulate: Annotated[int, typer.Option(help="Forward passes per step; 0: auto")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps per round; 0: auto")] = 0,
    repeats: Repeats = 4,
    threads: Threads = 2,
    teacher_layers: Annotated[int, typer.Option(help="Layers of the teacher", min=1)] = 12,
    layers: Annotated[int, typer.Option(help="Layers of the student", min=1)] = 6,
    width: Annotated[int, typer.Option(help="Hidden size of both", min=1)] = 768,
    length: Annotated[int, typer.Option(help="Pieces per block", min=8)] = 512,
    vocabulary: Annotated[
        int, typer.Option(help="Vocabulary size of synthetic text", min=200)
    ] = 30522,
    output: OptionalOutput = None,
) -> None:
    """Measure, print the table and save it."""
    with friendly_errors():
        chosen = choose_rows(rows, ROWS)
        device = choose_device(gpu)
        if device == "cpu":
            os.environ.update(cpu_environment(threads))
        torch.set_num_threads(threads)
        bf16 = choose_precision(precision, device)
        default = SIZES[device]
        size = Size(
            blocks or default.blocks, accumulate or default.accumulate, steps or default.steps
        )
        date = timestamp()
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
                device=device,
                bf16=bf16,
                rounds=repeats + 1,
            )
            products = MatrixProducts(
                device, bf16=bf16, width=width, positions=size.blocks * length
            )
            timings = measure(sides, packed.n_pieces, products.rate, repeats, log=msg.info)
    result = {
        "device": torch.cuda.get_device_name() if device == "gpu" else None,
        "precision": "bf16" if bf16 else "float32",
        "threads": threads,
        "shape": asdict(shape),
        "size": asdict(size),
        "text": source.name,
        "documents": len(packed.documents),
        "pieces": packed.n_pieces,
        "rows": [asdict(row) for row in chosen],
        **summarize(TARGETS[device], timings, useful_flops(shape, source.vocabulary)),
        "machine": describe_machine(),
        "date": date,
        "command": command_line(),
    }
    print(make_table({device: result}).to_text(), about(result), sep="\n")
    if output is not None:
        results: dict[Device, Any] = {"cpu": None, "gpu": None}
        save({**results, **read_results(output), device: result}, output)


def choose_device(gpu: bool | None) -> Device:
    """The device that the user asks for; `None`: a GPU if there is one."""
    available = torch.cuda.is_available()
    if gpu and not available:
        raise ConfigError(
            f"--gpu: torch {torch.__version__} sees no CUDA GPU. Leave --gpu out to use what "
            f"there is, or give --cpu"
        )
    return "gpu" if available and gpu is not False else "cpu"


def choose_precision(precision: str, device: Device) -> bool:
    """Whether both sides compute in bfloat16."""
    if precision not in ("auto", "float32", "bf16"):
        raise ConfigError(f"--precision {precision!r}: expected auto, float32 or bf16")
    return precision == "bf16" or (precision == "auto" and device == "gpu")


if __name__ == "__main__":
    typer.run(main)
