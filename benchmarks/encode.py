"""Words per second of an encoder, ours against spacy-transformers: encoding, and a training epoch.

    python -m benchmarks.encode DOCS.spacy ENCODER --output benchmarks/ewt

The same weights, in float32 torch; the same `tagger`, `ner` and `textcat`, which start from the
same weights too; the same documents in the same batches. spacy-transformers has its stock settings,
ours its defaults, and those are what an aim is for; further rows have one setting that differs.
All take turns in one process, one round after the other, ours in default settings and
spacy-transformers next to each other; the ratio is that of each round.

Encoding is `nlp.pipe` with the encoder alone, over docs that are tokenized already. Ours pools
pieces to tokens and fills `doc.tensor`, spacy-transformers leaves the pooling to the listeners. An
epoch is `nlp.update` on each batch and the optimizer's step, as `spacy train` does it; heads,
batches and optimizer are those of `configs/train.cfg`, with a constant learning rate.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Config, Optimizer, fix_random_seed
from wasabi import msg

from benchmarks.results import save_results
from benchmarks.spacy_transformers_twin import copy_parameters, make_twin
from benchmarks.teaching.speed import Measured, now
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.errors import ConfigError, friendly_errors, require
from spacy_distil.report.layout import TIMES, count, with_range
from spacy_distil.report.machine import command_line
from spacy_distil.report.process import cpu_environment
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_examples

STEM = "encode"
TEMPLATE = Path(__file__).resolve().parents[1] / "configs" / "train.cfg"
HEADS = ("tagger", "ner", "textcat")
ENCODER = "transformer"
# What spaCy's quickstart warms up to for a transformer.
LEARN_RATE = 5e-5
# Of encoding and of training, before the first round counts; the longest docs come along.
WARM_UP_DOCS, WARM_UP_BATCHES = 32, 2
# Docs that both must encode alike, short enough to be one window of either; in words.
ALIKE_DOCS, ALIKE_WORDS = 20, 90

OURS, THEIRS = "spacy-distil", "spacy-transformers"

# Told which round it is for, 0 for the warm-up, it prepares what is timed: that returns its words.
Task = Callable[[int], Callable[[], int]]


@dataclass(frozen=True)
class Row:
    """Ours with some settings.

    key: how `--rows` names it.
    settings: of `spacy-distil.DistilTransformer.v1`, that are not its defaults.
    encodes: whether they matter in prediction.
    """

    key: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    encodes: bool = False


# Those that concern speed.
TEMPLATE_SETTINGS = {
    "window": 192,
    "overlap": 16,
    "attention_dropout": 0.0,
    "mixed_precision": True,
}
ROWS = (
    Row("default", OURS, encodes=True),
    Row("window", "window = 192", {"window": 192}, encodes=True),
    Row("dropout", "attention_dropout = 0", {"attention_dropout": 0.0}),
    Row("mixed", "mixed_precision", {"mixed_precision": True}),
    Row("template", "as in configs/train.cfg", TEMPLATE_SETTINGS),
    Row("checkpointing", "gradient_checkpointing", {"gradient_checkpointing": True}),
)


@dataclass(frozen=True)
class Aim:
    """key: in the JSON file. title: of the table. ratio: least words/s of ours, of theirs."""

    key: str
    title: str
    ratio: float


ENCODING = Aim("encoding", "Encoding", 2.2)
TRAINING = Aim("training", "A training epoch", 1.8)


@dataclass(frozen=True)
class Side:
    """A pipeline, and the documents as its own vocab has them."""

    nlp: Language
    examples: list[Example]


def main(
    docs: Annotated[Path, typer.Argument(metavar="DOCS.spacy", help="Annotated documents")],
    encoder: Annotated[Path, typer.Argument(help="Hugging Face model directory", exists=True)],
    rows: Annotated[str, typer.Option(help="Keys between commas; empty for all")] = "",
    limit: Annotated[int, typer.Option(help="Documents; 0 for all")] = 0,
    repeats: Annotated[int, typer.Option(help="Rounds; even: as many each way", min=1)] = 4,
    threads: Annotated[int, typer.Option(help="Threads", min=1)] = 2,
    batch_size: Annotated[int, typer.Option(help="Documents at a time in nlp.pipe")] = 256,
    output: Annotated[
        Path | None, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")
    ] = None,
) -> None:
    """Measure encoding and training, print the tables and save them."""
    os.environ.update(cpu_environment(threads))
    torch.set_num_threads(threads)
    with friendly_errors():
        require("spacy_transformers", extra="interop", purpose="A comparison with it")
        chosen = choose_rows(rows)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        sides = make_sides(chosen, docs, encoder, limit=limit)
        texts = [example.reference.text for example in sides[THEIRS].examples]
        encodes = {THEIRS, *(row.title for row in chosen if row.encodes)}
        tasks = {
            name: encoding(side.nlp, texts, batch_size)
            for name, side in sides.items()
            if name in encodes
        }
        found = {ENCODING: measure(tasks, repeats, log=_log(ENCODING))}
        tasks = {name: training(side) for name, side in sides.items()}
        found[TRAINING] = measure(tasks, repeats, log=_log(TRAINING))
    tables = [make_table(aim, measured) for aim, measured in found.items()]
    native = has_native_bf16(torch.device("cpu"))
    about = (
        f"{len(texts):,} documents of {docs.name}, {found[ENCODING].words[0]:,} spaCy tokens, "
        f"encoded in batches of {batch_size} documents; {count(threads, 'thread')} of torch and of "
        f"the tokenizers (numpy has those that the environment gives it). Words/s: "
        f"median (range) of {count(repeats, 'round')} in turns, the ratio is that of each round. "
        f"The aim is for {OURS} with default settings; in each further row the named ones differ. "
        f"Mixed precision concerns training: this CPU has "
        f"{'' if native else 'no '}instructions for bfloat16."
    )
    print("\n".join([*(table.to_text() for table in tables), about]))
    if output is not None:
        data = {
            "docs": docs.name,
            "n_docs": len(texts),
            "threads": threads,
            "batch_size": batch_size,
            "learn_rate": LEARN_RATE,
            "bfloat16": native,
            "rows": [asdict(row) for row in chosen],
            **{aim.key: summarize(aim, measured) for aim, measured in found.items()},
            "command": command_line(),
        }
        parts = [*(table.to_markdown() for table in tables), about]
        save_results(output, STEM, data, parts, date=date)


def choose_rows(keys: str) -> list[Row]:
    """The rows of these keys, in the order of `ROWS`; all where there is none."""
    chosen = {key.strip() for key in keys.split(",") if key.strip()}
    known = [row.key for row in ROWS]
    if unknown := chosen.difference(known):
        raise ConfigError(
            f"--rows {', '.join(sorted(unknown))}: expected some of {', '.join(known)}."
        )
    return [row for row in ROWS if row.key in (chosen or known)]


# The pipelines


def make_sides(
    rows: Sequence[Row], docs: Path, encoder: Path, *, limit: int = 0
) -> dict[str, Side]:
    """A pipeline for each row, by its title, and the one on spacy-transformers. All heads start
    from the same weights.

    docs: annotated with tags, entities and categories.
    encoder: directory of weights and tokenizer.
    RETURNS: in the order in which they take their turns. The first row and its rival, whose ratio
        matters most, are neighbours.
    """
    fix_random_seed(0)
    sides: dict[str, Side] = {}
    for row in rows:
        nlp = make_ours(encoder.resolve(), row.settings)
        examples = read_examples(nlp, docs, limit=limit)
        if not sides:
            check_annotations(docs, examples)
        nlp.initialize(partial(list, examples))
        sides[row.title] = Side(nlp, examples)
    first = next(iter(sides.values()))
    for side in sides.values():
        for name in HEADS:
            copy_parameters(_model(first.nlp, name), _model(side.nlp, name))
    twin = make_twin(first.nlp, encoder.resolve(), first.examples)
    theirs = Side(twin, read_examples(twin, docs, limit=limit))
    sides = {rows[0].title: first, THEIRS: theirs, **sides}
    check_alike(sides)
    return sides


def make_ours(encoder: Path, settings: Mapping[str, Any]) -> Language:
    """An encoder, and the heads of the template, not initialized."""
    components = spacy.util.load_config(TEMPLATE)["components"]
    model = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(encoder)}
    nlp = spacy.blank("en")
    config = {"model": {**model, "device": "cpu", **settings}}
    nlp.add_pipe("distil_transformer", name=ENCODER, config=config)
    for name in HEADS:
        nlp.add_pipe(name, config={"model": components[name]["model"]})
    return nlp


def check_annotations(docs: Path, examples: Sequence[Example]) -> None:
    """Raise ConfigError where a head would have nothing to learn."""
    gold = [example.reference for example in examples]
    there = {
        "tags": any(doc.has_annotation("TAG") for doc in gold),
        "entities": any(doc.ents for doc in gold),
        "categories": any(doc.cats for doc in gold),
    }
    if missing := [what for what, found in there.items() if not found]:
        raise ConfigError(
            f"{docs}: no document has {' or '.join(missing)}. The training epoch is that of "
            f"{', '.join(HEADS)}; give documents that are annotated for all of them."
        )


def check_alike(sides: Mapping[str, Side]) -> None:
    """Raise ValueError where the heads of two pipelines get different vectors of short docs."""
    texts = [
        example.predicted[:ALIKE_WORDS].text for example in sides[THEIRS].examples[:ALIKE_DOCS]
    ]
    expected = token_vectors(sides[THEIRS].nlp, texts)
    for name, side in sides.items():
        error = float(np.abs(token_vectors(side.nlp, texts) - expected).max(initial=0.0))
        if error > 1e-3:
            raise ValueError(f"Vectors of {name} and of {THEIRS} differ by up to {error}.")


def token_vectors(nlp: Language, texts: Sequence[str]) -> np.ndarray:
    """What the first head gets of its listener, (n_tokens of all docs, width)."""
    listener = _model(nlp, HEADS[0]).get_ref("tok2vec")
    with nlp.select_pipes(enable=[ENCODER]):
        return np.concatenate(listener.predict(list(nlp.pipe(texts))))


def _model(nlp: Language, name: str) -> Any:
    pipe: Any = nlp.get_pipe(name)
    return pipe.model


# What is timed


def measure(tasks: Mapping[str, Task], rounds: int, *, log: Callable[[str], None]) -> Measured:
    """Seconds of each task in each round, after a warm-up; every second round goes backwards. The
    clock stops once a GPU is done, too.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    words: list[int] = []
    for turn in range(rounds + 1):
        log(f"round {turn} of {rounds}" if turn else "warm-up")
        counts: set[int] = set()
        for name in list(tasks)[:: -1 if turn % 2 else 1]:
            run = tasks[name](turn)
            gc.collect()
            started = now()
            counts.add(run())
            if turn:
                seconds[name].append(now() - started)
        if len(counts) != 1:
            raise ValueError(f"Not all went through the same words: {counts}.")
        if turn:
            words += counts
    return Measured(seconds, words)


def encoding(nlp: Language, texts: Sequence[str], batch_size: int) -> Task:
    """All documents through `nlp.pipe` with the encoder alone."""

    warm_up = [*texts[:WARM_UP_DOCS], max(texts, key=len)]

    def prepare(turn: int) -> Callable[[], int]:
        docs = [nlp.make_doc(text) for text in (texts if turn else warm_up)]

        def run() -> int:
            with nlp.select_pipes(enable=[ENCODER]):
                return sum(map(len, nlp.pipe(_taken(docs), batch_size=batch_size)))

        return run

    return prepare


def _taken(docs: list[Doc]) -> Iterator[Doc]:
    """The docs, each let go of as it is taken."""
    docs.reverse()
    while docs:
        yield docs.pop()


def training(side: Side, config: Config | None = None) -> Task:
    """An epoch. Its order of documents is that of the round's number, the same for all.

    config: of `spacy train`, for batches, optimizer and dropout; None for the template.
    """
    settings = (config or spacy.util.load_config(TEMPLATE))["training"]
    optimizer = {**settings["optimizer"], "learn_rate": LEARN_RATE}
    registry: Any = spacy.registry
    resolved = registry.resolve({"optimizer": optimizer, "batcher": settings["batcher"]})

    def prepare(turn: int) -> Callable[[], int]:
        examples = list(side.examples)
        random.Random(turn).shuffle(examples)
        batches = list(resolved["batcher"](examples))
        if not turn:
            longest = max(batches, key=lambda batch: max(map(len, batch)))
            batches = [*batches[:WARM_UP_BATCHES], longest]

        def run() -> int:
            for batch in batches:
                update(side.nlp, batch, resolved["optimizer"], drop=settings["dropout"])
            return sum(len(example.predicted) for example in itertools.chain(*batches))

        return run

    return prepare


def update(nlp: Language, batch: list[Example], optimizer: Optimizer, *, drop: float) -> None:
    """Learn from a batch as `spacy train` does: all gradients first, then a step of each pipe."""
    nlp.update(batch, drop=drop, sgd=False)  # type: ignore[arg-type]
    for _, pipe in nlp.pipeline:
        pipe.finish_update(optimizer)  # type: ignore[attr-defined]
    optimizer.step_schedules()


def _log(aim: Aim) -> Callable[[str], None]:
    return lambda message: msg.info(f"{aim.title}: {message}")


# What is said of it


def summarize(aim: Aim, measured: Measured) -> dict[str, Any]:
    """For JSON: raw seconds, words/s, ratios, and whether the aim is met (`None`: not measured)."""
    return {
        **asdict(measured),
        "words_per_second": {
            name: asdict(measured.words_per_second(name)) for name in measured.seconds
        },
        "ratio": {
            name: asdict(measured.ratio(name, THEIRS))
            for name in measured.seconds
            if name != THEIRS
        },
        "aim": aim.ratio,
        "met": is_met(aim, measured),
    }


def is_met(aim: Aim, measured: Measured) -> bool | None:
    """Whether the median ratio of ours, in default settings, reaches the aim."""
    if OURS not in measured.seconds:
        return None
    return measured.ratio(OURS, THEIRS).median >= aim.ratio


def make_table(aim: Aim, measured: Measured) -> Table:
    """A row for each pipeline, the verdict in that of ours with default settings."""
    rows = []
    for name in measured.seconds:
        cells = [_rate(measured.words_per_second(name)), "", "", ""]
        if name != THEIRS:
            cells[1] = with_range(measured.ratio(name, THEIRS), "{:.2f}")
        if name == OURS:
            cells[2:] = [f"{aim.ratio:g}", "yes" if is_met(aim, measured) else "no"]
        rows.append([name, *cells])
    header = [aim.title, "words/s", f"{TIMES} {THEIRS}", "at least", "met"]
    return Table(title=f"{aim.title}, words/s", header=header, rows=rows)


def _rate(spread: Spread) -> str:
    return with_range(spread, "{:,.0f}")


if __name__ == "__main__":
    typer.run(main)
