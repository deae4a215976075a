"""Words per second of teaching against plain training of the same student.

    python -m benchmarks.pipeline_distillation.speed TEACHER CONFIG --steps 8 --rounds 5 --output DIR \\
        --paths.train train.spacy --paths.dev dev.spacy [--section.key value]

CONFIG is that of a teaching run, with [distillation]. Two students that are made alike learn from
the same batches of annotated documents: one as `spacy train` updates it, the other as each stage of
the config does, from what the teacher recorded before. They take turns, some steps each, and the
ratio is that of each round. Unlabelled text is left out: `spacy train` has nothing to do with it.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from spacy.cli._util import parse_config_overrides, setup_gpu
from spacy.language import Language
from wasabi import msg

from spacy_distil.distillation.pipeline.config import PipelineDistilConfig, Stage, load_config
from spacy_distil.distillation.pipeline.corpus import (
    TransferExample,
    TransferSet,
    read_transfer_set,
)
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs, fingerprint_pipeline
from spacy_distil.distillation.pipeline.loop import PipelineDistiller
from spacy_distil.distillation.pipeline.run import (
    make_distiller,
    make_student,
    resolve_corpora,
    resolve_training,
)
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.report.layout import count, measured_on, with_range
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table

STEM = "teaching_speed"
PLAIN = "plain training"
WHOLE = "teaching, all stages"

Batch = Sequence[TransferExample]
# Gathers the gradients of a batch and takes an optimizer step.
Step = Callable[[Batch], None]


@dataclass(frozen=True)
class Measured:
    """seconds: of each side's block in each round, by the side's name.

    words: of the block of each round, in spaCy tokens.
    """

    seconds: dict[str, list[float]]
    words: list[int]

    def words_per_second(self, side: str) -> Spread:
        pairs = zip(self.words, self.seconds[side], strict=True)
        return Spread.of([words / seconds for words, seconds in pairs])

    def ratio(self, side: str, reference: str) -> Spread:
        """Words/s of a side divided by those of another, by round."""
        pairs = zip(self.seconds[reference], self.seconds[side], strict=True)
        return Spread.of([theirs / mine for theirs, mine in pairs])


def measure(
    sides: dict[str, Step], batches: Iterator[Batch], *, steps: int, rounds: int
) -> Measured:
    """Time blocks of steps, by turns, each round with batches of its own, the same for all sides.

    A round before the first warms up. Every second round goes through the sides backwards.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    words = []
    for turn in range(rounds + 1):
        block = list(itertools.islice(batches, steps))
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            started = now()
            for batch in block:
                sides[name](batch)
            if turn:
                seconds[name].append(now() - started)
        if turn:
            words.append(sum(len(lesson) for batch in block for lesson in batch))
    return Measured(seconds, words)


def now() -> float:
    """Seconds, once a GPU has done all that it was given to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


def add_whole(measured: Measured, shares: Mapping[str, float]) -> Measured:
    """With one side more, `WHOLE`: a run that gives each stage its share of the steps."""
    total = sum(shares.values())
    whole = [
        sum(share / total * measured.seconds[name][turn] for name, share in shares.items())
        for turn in range(len(measured.words))
    ]
    return Measured({**measured.seconds, WHOLE: whole}, measured.words)


def plain_step(nlp: Language, training: dict[str, Any], lessons: TransferSet) -> Step:
    """As `spacy train` does it.

    lessons: as `nlp` reads them. Batches come from those of the other student, whose strings it
        does not have, and are looked up by their numbers.
    """
    optimizer, drop = training["optimizer"], _dropout(training)
    frozen = training["frozen_components"]
    learners: list[Any] = [
        pipe
        for name, pipe in nlp.pipeline
        if name not in frozen and getattr(pipe, "is_trainable", False)
    ]
    losses: dict[str, float] = {}

    def step(batch: Batch) -> None:
        nlp.update(
            [lessons.all[lesson.number].example for lesson in batch],
            drop=drop,
            sgd=False,  # type: ignore[arg-type]
            losses=losses,
            exclude=frozen,
            annotates=training["annotating_components"],
        )
        for pipe in learners:
            pipe.finish_update(optimizer)
        optimizer.step_schedules()

    return step


def taught_step(teaching: PipelineDistiller, stage: Stage, training: dict[str, Any]) -> Step:
    """As a stage of a teaching run does it."""
    optimizer, drop = training["optimizer"], _dropout(training)
    losses: dict[str, float] = {}

    def step(batch: Batch) -> None:
        teaching.update(batch, stage, drop=drop, losses=losses)
        teaching.finish_update(optimizer)
        optimizer.step_schedules()

    return step


def _dropout(training: dict[str, Any]) -> float:
    drop = training["dropout"]
    return float(drop) if isinstance(drop, (int, float)) else float(next(drop))


def make_batches(
    lessons: Sequence[TransferExample], batcher: Callable[..., Any]
) -> Iterator[Batch]:
    """For ever: pass after pass, in an order that is always the same."""
    for epoch in itertools.count():
        order = list(lessons)
        random.Random(epoch).shuffle(order)
        yield from batcher(order)


def compare(
    teacher: Language,
    settings: PipelineDistilConfig,
    work: Path,
    *,
    steps: int,
    rounds: int,
    gpu_id: int = -1,
) -> Measured:
    """Time plain training, each stage, and a whole run of them.

    work: gets what a teaching run writes beside its student, the cache included unless the config
        says where that lies.
    """
    plain, _ = make_student(settings, teacher, work / "plain", gpu_id)
    nlp, _ = make_student(settings, teacher, work / "taught", gpu_id)
    trainings = [resolve_training(each.config) for each in (plain, nlp)]
    # Each student has docs of its own vocab.
    own, lessons = (
        read_transfer_set(each, resolve_corpora(each, settings)[0], None) for each in (plain, nlp)
    )
    inputs = {
        "the teacher": fingerprint_pipeline(teacher),
        "the documents": fingerprint_docs(lessons.docs),
    }
    teaching = make_distiller(
        nlp, teacher, settings, trainings[1], lessons, inputs, work / "taught"
    )
    sides = {PLAIN: plain_step(plain, trainings[0], own)}
    shares = {}
    for stage in settings.stages:
        name = f"stage {stage.name}"
        sides[name] = taught_step(teaching, stage, trainings[1])
        shares[name] = stage.end - stage.start
    batches = make_batches(lessons.gold, trainings[0]["batcher"])
    return add_whole(measure(sides, batches, steps=steps, rounds=rounds), shares)


def make_table(measured: Measured) -> Table:
    return Table(
        title="Training, words/s",
        header=["", "words/s", f"of {PLAIN}"],
        rows=[
            [
                name,
                with_range(measured.words_per_second(name), "{:,.0f}"),
                "" if name == PLAIN else with_range(measured.ratio(name, PLAIN), "{:.2f}"),
            ]
            for name in measured.seconds
        ],
    )


def write(measured: Measured, output: Path, *, steps: int, date: str) -> None:
    machine, threads = describe_machine(), torch.get_num_threads()
    result = {
        **asdict(measured),
        "steps": steps,
        "threads": threads,
        "machine": machine,
        "date": date,
        "command": command_line(),
    }
    note = (
        f"Annotated documents, batches as the config has them, {count(threads, 'thread')}. "
        f"Median (range) of {len(measured.words)} rounds of {steps} steps that take turns; the "
        f"ratio is that of each round.\n\n{measured_on(machine, date)}"
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{STEM}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf8")
    text = f"{make_table(measured).to_markdown()}\n\n{note}\n"
    (output / f"{STEM}.md").write_text(text, encoding="utf8")


def main(
    context: typer.Context,
    teacher: Annotated[str, typer.Argument(help="Trained pipeline")],
    config: Annotated[Path, typer.Argument(help="Config of a teaching run", exists=True)],
    output: Annotated[Path, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")],
    steps: Annotated[int, typer.Option(help="Steps of a block", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Blocks of each side", min=1)] = 5,
    gpu_id: Annotated[int, typer.Option(help="GPU for spaCy's own layers; -1: none")] = -1,
) -> None:
    """Time teaching against plain training, print the table and save it."""
    with friendly_errors():
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        settings = load_config(config, parse_config_overrides(context.args))
        setup_gpu(gpu_id)
        with TemporaryDirectory() as work:
            nlp = load_pipeline(teacher)
            measured = compare(nlp, settings, Path(work), steps=steps, rounds=rounds, gpu_id=gpu_id)
        write(measured, output, steps=steps, date=date)
        print(make_table(measured).to_text())
    msg.good(f"Saved {STEM}.json and {STEM}.md to {output}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    app()
