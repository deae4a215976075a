"""Measure words/s of pipeline distillation, against plain training of the same student.

    python -m benchmarks.pipeline_distillation.speed TEACHER CONFIG --steps 8 --rounds 5 \\
        --output benchmarks/pipeline_distillation/results \\
        --paths.train train.spacy --paths.dev dev.spacy [--section.key value]

CONFIG is a config of `spacy distil pipeline`, with [distillation]. Two students with the same
initial weights learn from the same batches of annotated documents: one as in `spacy train`, the
other as in each stage of the config, from records of the teacher that were made before. They take
turns, some steps each, and the ratio is taken round by round. Unlabelled text is left out, because
`spacy train` cannot learn from it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from spacy.cli._util import parse_config_overrides, setup_gpu
from spacy.language import Language

from benchmarks.common.cells import rate, ratio
from benchmarks.common.options import Output
from benchmarks.common.results import report_results, timestamp
from benchmarks.common.rounds import Rounds, in_turn, now
from spacy_distil.distillation.pipeline.config import (
    PipelineDistilConfig,
    PipelineStage,
    load_config,
    resolve_training,
)
from spacy_distil.distillation.pipeline.corpus import (
    TransferExample,
    TransferSet,
    read_transfer_set,
    resolve_corpora,
)
from spacy_distil.distillation.pipeline.distiller import PipelineDistiller, make_distiller
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs, fingerprint_pipeline
from spacy_distil.distillation.pipeline.student import make_student
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.report.layout import count
from spacy_distil.tables import Table

STEM = "speed"
PLAIN = "plain training"
ALL_STAGES = "distillation, all stages"

Batch = Sequence[TransferExample]
# Computes the gradients of a batch and takes an optimizer step.
TrainStep = Callable[[Batch], None]


def measure(
    sides: dict[str, TrainStep], batches: Iterator[Batch], *, steps: int, rounds: int
) -> Rounds:
    """Time the steps of all sides in rounds, after a warm-up. Each round has its own batches, the
    same for all sides.

    steps: number of steps per round and side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    words = []
    for turn in range(rounds + 1):
        of_round = list(itertools.islice(batches, steps))
        for name in in_turn(sides, turn):
            started = now()
            for batch in of_round:
                sides[name](batch)
            if turn:
                seconds[name].append(now() - started)
        if turn:
            words.append(sum(len(example) for batch in of_round for example in batch))
    return Rounds(seconds, words)


def add_all_stages(rounds: Rounds, shares: Mapping[str, float]) -> Rounds:
    """Add the side `ALL_STAGES`: a run that gives each stage its share of the steps.

    shares: by the name of the stage's side.
    """
    total = sum(shares.values())
    seconds = [
        sum(share / total * rounds.seconds[name][turn] for name, share in shares.items())
        for turn in range(len(rounds.words))
    ]
    return Rounds({**rounds.seconds, ALL_STAGES: seconds}, rounds.words)


def plain_step(nlp: Language, training: dict[str, Any], transfer_set: TransferSet) -> TrainStep:
    """Make a step as in `spacy train`.

    transfer_set: the documents in the vocab of `nlp`. Batches have documents in the vocab of the
        other student, which are looked up here by their numbers.
    """
    optimizer, drop = training["optimizer"], _dropout(training)
    frozen = training["frozen_components"]
    trainable: list[Any] = [
        pipe
        for name, pipe in nlp.pipeline
        if name not in frozen and getattr(pipe, "is_trainable", False)
    ]
    losses: dict[str, float] = {}

    def step(batch: Batch) -> None:
        nlp.update(
            [transfer_set.all[example.number].example for example in batch],
            drop=drop,
            sgd=False,  # type: ignore[arg-type]
            losses=losses,
            exclude=frozen,
            annotates=training["annotating_components"],
        )
        for pipe in trainable:
            pipe.finish_update(optimizer)
        optimizer.step_schedules()

    return step


def distil_step(
    distiller: PipelineDistiller, stage: PipelineStage, training: dict[str, Any]
) -> TrainStep:
    """Make a step as in a stage of `spacy distil pipeline`."""
    optimizer, drop = training["optimizer"], _dropout(training)
    losses: dict[str, float] = {}

    def step(batch: Batch) -> None:
        distiller.update(batch, stage, drop=drop, losses=losses)
        distiller.finish_update(optimizer)
        optimizer.step_schedules()

    return step


def _dropout(training: dict[str, Any]) -> float:
    drop = training["dropout"]
    return float(drop) if isinstance(drop, (int, float)) else float(next(drop))


def make_batches(
    examples: Sequence[TransferExample], batcher: Callable[..., Any]
) -> Iterator[Batch]:
    """Make batches without end, epoch after epoch, always in the same order."""
    for epoch in itertools.count():
        order = list(examples)
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
) -> Rounds:
    """Time plain training, each stage, and a run of all stages.

    work: directory for the files of a distillation run. The cache is in it, too, unless the config
        names another place.
    """
    plain, _ = make_student(settings, teacher, work / "plain", gpu_id)
    nlp, _ = make_student(settings, teacher, work / "distilled", gpu_id)
    trainings = [resolve_training(each.config) for each in (plain, nlp)]
    # Each student has docs in its own vocab.
    plain_set, transfer_set = (
        read_transfer_set(each, resolve_corpora(each, settings)[0], None) for each in (plain, nlp)
    )
    inputs = {
        "the teacher": fingerprint_pipeline(teacher),
        "the documents": fingerprint_docs(transfer_set.docs),
    }
    distiller = make_distiller(
        nlp, teacher, settings, trainings[1], transfer_set, inputs, work / "distilled"
    )
    sides = {PLAIN: plain_step(plain, trainings[0], plain_set)}
    shares = {}
    for stage in settings.stages:
        name = f"stage {stage.name}"
        sides[name] = distil_step(distiller, stage, trainings[1])
        shares[name] = stage.end - stage.start
    batches = make_batches(transfer_set.gold, trainings[0]["batcher"])
    return add_all_stages(measure(sides, batches, steps=steps, rounds=rounds), shares)


def make_table(rounds: Rounds) -> Table:
    return Table(
        title="Training, words/s",
        header=["", "words/s", f"of {PLAIN}"],
        rows=[
            [
                name,
                rate(rounds.words_per_second(name)),
                "" if name == PLAIN else ratio(rounds.ratio(name, PLAIN)),
            ]
            for name in rounds.seconds
        ],
    )


def main(
    context: typer.Context,
    teacher: Annotated[str, typer.Argument(help="Trained pipeline")],
    config: Annotated[Path, typer.Argument(help="Config of `spacy distil pipeline`", exists=True)],
    output: Output,
    steps: Annotated[int, typer.Option(help="Steps per round", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Number of rounds", min=1)] = 5,
    gpu_id: Annotated[int, typer.Option(help="GPU for spaCy's own layers; -1: none")] = -1,
) -> None:
    """Time distillation against plain training, print the table and save it."""
    with friendly_errors():
        date = timestamp()
        settings = load_config(config, parse_config_overrides(context.args))
        setup_gpu(gpu_id)
        with TemporaryDirectory() as work:
            nlp = load_pipeline(teacher)
            timings = compare(nlp, settings, Path(work), steps=steps, rounds=rounds, gpu_id=gpu_id)
    threads = torch.get_num_threads()
    about = (
        f"Annotated documents, batches of the config, {count(threads, 'thread')}. Median (range) "
        f"of {len(timings.words)} rounds of {steps} steps in turns; the ratio is the median "
        "(range) over the rounds."
    )
    data = {**asdict(timings), "steps": steps, "threads": threads}
    report_results([make_table(timings), about], data, output=output, stem=STEM, date=date)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    app()
