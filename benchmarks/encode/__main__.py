"""Measure words/s of encoding and of a training epoch on torch, against spacy-transformers.

    python -m benchmarks.encode DOCS.spacy ENCODER --output benchmarks/encode/results

Both sides have the same weights in float32, the same `tagger`, `ner` and `textcat` with the same
initial weights, and the same documents in the same batches. spacy-transformers has its stock
settings, ours its defaults. Each further row changes one setting of ours. All sides take turns in
one process. The ratio is taken round by round.

Encoding is `nlp.pipe` with the encoder alone, over docs that are already tokenized. Ours pools
pieces to tokens and fills `doc.tensor`, spacy-transformers leaves the pooling to the listeners. A
training epoch is `nlp.update` on each batch and a step of the optimizer, as in `spacy train`.
Pipes, batches and optimizer come from `configs/train.cfg`, with a constant learning rate.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import typer
from wasabi import msg

from benchmarks.common.cells import rate, ratio, verdict
from benchmarks.common.options import (
    BatchSize,
    Docs,
    Encoder,
    Keys,
    Limit,
    OptionalOutput,
    Repeats,
    Threads,
    choose_rows,
)
from benchmarks.common.results import report_results, timestamp
from benchmarks.common.rounds import Rounds
from benchmarks.encode.sides import OURS, ROWS, THEIRS, make_sides
from benchmarks.encode.timing import LEARN_RATE, encoding, measure, training
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.errors import friendly_errors, require
from spacy_distil.report.layout import TIMES, count
from spacy_distil.report.process import cpu_environment
from spacy_distil.tables import Table

STEM = "encode"


@dataclass(frozen=True)
class SpeedTarget:
    """The speed that ours must reach with default settings.

    key: in the JSON file.
    title: of the table.
    ratio: smallest acceptable ratio to the words/s of spacy-transformers.
    """

    key: str
    title: str
    ratio: float


ENCODING = SpeedTarget("encoding", "Encoding", 2.2)
TRAINING = SpeedTarget("training", "A training epoch", 1.8)


def main(
    docs: Docs,
    encoder: Encoder,
    rows: Keys = "",
    limit: Limit = 0,
    repeats: Repeats = 4,
    threads: Threads = 2,
    batch_size: BatchSize = 256,
    output: OptionalOutput = None,
) -> None:
    """Measure encoding and training, print the tables and save them."""
    os.environ.update(cpu_environment(threads))
    torch.set_num_threads(threads)
    with friendly_errors():
        require("spacy_transformers", extra="interop", purpose="A comparison with it")
        chosen = choose_rows(rows, ROWS)
        date = timestamp()
        sides = make_sides(chosen, docs, encoder, limit=limit)
        texts = [example.reference.text for example in sides[THEIRS].examples]
        encodes = {THEIRS, *(row.title for row in chosen if row.encodes)}
        encoding_tasks = {
            name: encoding(side.nlp, texts, batch_size)
            for name, side in sides.items()
            if name in encodes
        }
        training_tasks = {name: training(side) for name, side in sides.items()}
        timings = {
            target: measure(tasks, repeats, log=_log(target))
            for target, tasks in ((ENCODING, encoding_tasks), (TRAINING, training_tasks))
        }
    native = has_native_bf16(torch.device("cpu"))
    about = (
        f"{len(texts):,} documents of {docs.name}, {timings[ENCODING].words[0]:,} spaCy tokens, "
        f"encoded in batches of {batch_size} documents; {count(threads, 'thread')} of torch and of "
        f"the tokenizers (the environment decides about numpy). Words/s: median (range) of "
        f"{count(repeats, 'round')} in turns; the ratio is the median (range) over the rounds. "
        f"The target concerns {OURS} with default settings; each further row changes the settings "
        f"that it names. Mixed precision concerns training: this CPU has "
        f"{'' if native else 'no '}instructions for bfloat16."
    )
    data = {
        "docs": docs.name,
        "n_docs": len(texts),
        "threads": threads,
        "batch_size": batch_size,
        "learn_rate": LEARN_RATE,
        "bfloat16": native,
        "rows": [asdict(row) for row in chosen],
        **{target.key: summarize(target, rounds) for target, rounds in timings.items()},
    }
    tables = [make_table(target, rounds) for target, rounds in timings.items()]
    report_results([*tables, about], data, output=output, stem=STEM, date=date)


def _log(target: SpeedTarget) -> Callable[[str], None]:
    return lambda message: msg.info(f"{target.title}: {message}")


def summarize(target: SpeedTarget, rounds: Rounds) -> dict[str, Any]:
    """Summarize timings for the JSON file. `met` is `None` if the default row was not measured."""
    return {
        **asdict(rounds),
        "words_per_second": {
            name: asdict(rounds.words_per_second(name)) for name in rounds.seconds
        },
        "ratio": {
            name: asdict(rounds.ratio(name, THEIRS)) for name in rounds.seconds if name != THEIRS
        },
        "aim": target.ratio,
        "met": is_met(target, rounds),
    }


def is_met(target: SpeedTarget, rounds: Rounds) -> bool | None:
    """Whether the median ratio of ours, with default settings, reaches the target."""
    if OURS not in rounds.seconds:
        return None
    return rounds.ratio(OURS, THEIRS).median >= target.ratio


def make_table(target: SpeedTarget, rounds: Rounds) -> Table:
    """Make a table with a row per pipeline. The verdict is in the row of the default settings."""
    rows = []
    for name in rounds.seconds:
        cells = [rate(rounds.words_per_second(name)), "", "", ""]
        if name != THEIRS:
            cells[1] = ratio(rounds.ratio(name, THEIRS))
        if name == OURS:
            cells[2:] = [f"{target.ratio:g}", verdict(is_met(target, rounds))]
        rows.append([name, *cells])
    header = [target.title, "words/s", f"{TIMES} {THEIRS}", "at least", "met"]
    return Table(title=f"{target.title}, words/s", header=header, rows=rows)


if __name__ == "__main__":
    typer.run(main)
