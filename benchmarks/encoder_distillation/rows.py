"""Distil and train the students of an ablation of objectives, all with the same budget.

    python -m benchmarks.encoder_distillation.rows OUT ROW [ROW ...] --seeds 0 \\
        --corpus DIR --encoder DIR

makes the encoder `OUT/ROW/encoder/seed-N` from the first layers of a teacher, trains the project's
pipeline on it for a few epochs, `OUT/ROW/seed-N/model-best`, and scores it on `DIR/test.spacy`. The
program prints each command before it runs it. It skips finished commands and continues interrupted
ones. All rows see the same blocks of text, from `benchmarks.encoder_distillation.text`, in steps of
the same size. `ROWS` says how the rows differ. `--dry-run` only prints the commands.

Some rows need a teacher with a masked-LM head. It is the encoder after masked-LM training of all
its layers on the same text, `OUT/adapted`. The first of these rows makes it: wait for it before you
start another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from spacy.util import load_config
from thinc.api import Config

from benchmarks.common.commands import (
    Command,
    choose,
    run_all,
    start_student,
    train,
    write_config,
)
from benchmarks.common.comparison import score_once
from benchmarks.common.options import DryRun, RowsDirectory, Seeds
from benchmarks.common.project import TRANSFORMER_CONFIG
from benchmarks.encoder_distillation.text import DEV, TRAIN
from project.training import configure, parse_seeds, read_summary, schedule
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.scores import Scores

N_LAYERS = 3
# Number of held-out blocks, for the accuracy of masked-LM heads.
DEV_BLOCKS = 100
# Directory of the adapted teacher.
ADAPTED = "adapted"
CORPUS_FILES = ("train.spacy", "dev.spacy", "test.spacy", "corpus.json")
# Number of evaluations while a pipeline trains. The last one follows the last step.
EVALUATIONS = 2

Settings = dict[str, Any]


def objective(kind: str, weight: float = 1.0, **settings: Any) -> Settings:
    """The config of an objective."""
    return {"@distil_objectives": f"spacy-distil.{kind}.v1", "weight": weight, **settings}


COSINE = {"cosine": objective("Cosine")}
HIDDEN = {"hidden": objective("HiddenStates")}
RELATIONS = {"relations": objective("Relations")}
MASKED_LM = {"masked_lm": objective("MaskedLM", 2.0)}
SOFT_TARGETS = {"soft_targets": objective("SoftTargets", 5.0)}
DISTILBERT = {**SOFT_TARGETS, **MASKED_LM, **COSINE}


def staged(*stages: tuple[float, Mapping[str, Settings]]) -> Settings:
    """The config of groups of objectives, one after another. stages: share of the steps, group."""
    return {
        "objectives": {name: block for _, group in stages for name, block in group.items()},
        "stages": {
            "_".join(group): {"objectives": list(group), "share": share} for share, group in stages
        },
    }


@dataclass(frozen=True)
class EncoderRow:
    """A recipe for a student encoder.

    title: for the table.
    start: initial weights of the student: "copied", the teacher's first layers; "random", as many
        random layers; "teacher", the whole teacher.
    distil: the row's own part of the config of `spacy distil encoder`; empty without distillation.
    adapted: whether the teacher is the adapted one, which has a masked-LM head.
    before: rows to compare with.
    learn_rate: of distillation; `None` for the same as all rows.
    """

    name: str
    title: str
    start: Literal["copied", "random", "teacher"] = "copied"
    distil: Mapping[str, Any] = field(default_factory=dict)
    adapted: bool = False
    before: tuple[str, ...] = ()
    learn_rate: float | None = None

    def encoder(self, output: Path, seed: int) -> Path | None:
        """The encoder that the row's pipeline is trained on; `None`: the given teacher."""
        if self.start == "teacher":
            return output / ADAPTED if self.adapted else None
        return output / self.name / "encoder" / f"seed-{seed}"


_ROWS = (
    EncoderRow("teacher", "all layers of the teacher", "teacher"),
    EncoderRow("copied", "layers copied"),
    EncoderRow(
        "random",
        "random start, cosine",
        "random",
        {"objectives": COSINE},
        before=("copied",),
        learn_rate=5e-4,
    ),
    EncoderRow("cosine", "+ cosine", distil={"objectives": COSINE}, before=("copied", "random")),
    EncoderRow("hidden", "+ hidden states", distil={"objectives": HIDDEN}, before=("copied",)),
    EncoderRow("relations", "+ relations", distil={"objectives": RELATIONS}, before=("copied",)),
    EncoderRow(
        "relations-and-cosine",
        "+ relations and cosine",
        distil={"objectives": {**RELATIONS, **COSINE}},
        before=("relations", "cosine"),
    ),
    EncoderRow(
        "relations-then-cosine",
        "+ relations, then cosine",
        distil=staged((0.5, RELATIONS), (0.5, COSINE)),
        before=("relations-and-cosine",),
    ),
    EncoderRow(
        "hidden-then-cosine",
        "+ hidden states, then cosine",
        distil=staged((0.5, HIDDEN), (0.5, COSINE)),
        before=("relations-then-cosine",),
    ),
    EncoderRow(
        "adapted-teacher",
        "all layers of the adapted teacher",
        "teacher",
        adapted=True,
        before=("teacher",),
    ),
    EncoderRow("adapted-copied", "adapted: layers copied", adapted=True, before=("copied",)),
    EncoderRow(
        "masked-lm",
        "adapted: + masked LM",
        distil={"objectives": MASKED_LM},
        adapted=True,
        before=("copied", "adapted-copied"),
    ),
    EncoderRow(
        "soft-targets",
        "adapted: + soft targets",
        distil={"objectives": SOFT_TARGETS},
        adapted=True,
        before=("copied", "adapted-copied"),
    ),
    EncoderRow(
        "soft-targets-masked-lm",
        "adapted: + soft targets and masked LM",
        distil={"objectives": {**SOFT_TARGETS, **MASKED_LM}},
        adapted=True,
        before=("copied", "soft-targets", "masked-lm"),
    ),
    EncoderRow(
        "distilbert",
        "adapted: + DistilBERT's objectives",
        distil={"objectives": DISTILBERT},
        adapted=True,
        before=("copied", "soft-targets-masked-lm"),
    ),
    EncoderRow(
        "relations-then-distilbert",
        "adapted: + relations, then DistilBERT's",
        distil=staged((0.5, RELATIONS), (0.5, DISTILBERT)),
        adapted=True,
        before=("distilbert",),
    ),
)
ROWS = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class EncoderInputs:
    """The files that the rows are made from, and their budget.

    output: directory of all rows.
    corpus: directory with the files of `CORPUS_FILES`.
    encoder: directory of the teacher.
    text: directory with the text to distil on.
    block_size: number of pieces per block.
    max_blocks: number of blocks of text.
    batch_size: number of blocks per step.
    learn_rate: of distillation, unless a row has its own.
    adapt_learn_rate: of the adaptation of the teacher.
    epochs: of the pipeline's training.
    """

    output: Path
    corpus: Path
    encoder: Path
    text: Path
    block_size: int = 128
    max_blocks: int = 7_900
    batch_size: int = 32
    learn_rate: float = 1e-4
    adapt_learn_rate: float = 3e-4
    epochs: float = 3

    def check(self) -> None:
        """Raise ConfigError if a file is missing."""
        for path in (
            *(self.corpus / name for name in CORPUS_FILES),
            self.encoder / "config.json",
            self.text / TRAIN,
            self.text / DEV,
        ):
            if not path.is_file():
                raise ConfigError(
                    f"No such file: {path}. The project's 'corpus' command makes --corpus, and "
                    "benchmarks.encoder_distillation.text makes --text; --encoder is a local "
                    "directory"
                )

    def teacher_of(self, row: EncoderRow) -> Path:
        return self.output / ADAPTED if row.adapted else self.encoder


# Configs


def distil_config(inputs: EncoderInputs, teacher: Path, learn_rate: float) -> Settings:
    """The config that all runs share: text and budget."""
    return {
        "teacher": {"name": str(teacher)},
        "corpus": {
            "train": [str(inputs.text / TRAIN)],
            "dev": [str(inputs.text / DEV)],
            "block_size": inputs.block_size,
            "max_blocks": inputs.max_blocks,
            "max_dev_blocks": DEV_BLOCKS,
            "mask_probability": "auto",
            "cache": str(inputs.output / "cache"),
        },
        "objectives": {},
        "training": {
            "epochs": 1,
            "max_steps": None,
            "batch_size": inputs.batch_size,
            "learn_rate": learn_rate,
            "dropout": 0.0,
            "mixed_precision": "auto",
            "log_frequency": 10,
            "eval_frequency": 100,
            "checkpoint_frequency": 50,
            "tensorboard": False,
        },
    }


def row_config(row: EncoderRow, inputs: EncoderInputs) -> Config:
    """Make the row's config of `spacy distil encoder`. It is the same for all seeds."""
    learn_rate = inputs.learn_rate if row.learn_rate is None else row.learn_rate
    config = Config(distil_config(inputs, inputs.teacher_of(row), learn_rate))
    start = "random" if row.start == "random" else "teacher"
    student = {"layers": "first", "n_layers": N_LAYERS, "start": start}
    return config.merge({"student": student}).merge(dict(row.distil))


def train_config(inputs: EncoderInputs) -> Config:
    """Make the training config of the pipeline, the same for all rows."""
    template = load_config(TRANSFORMER_CONFIG, interpolate=False)
    return configure(template, read_summary(inputs.corpus), ner="distil_ner")


# Commands


def make_commands(row: EncoderRow, seed: int, inputs: EncoderInputs) -> list[Command]:
    """Make the commands for one seed of a row, and write their configs."""
    commands = []
    if row.adapted:
        commands.append(_adapt(inputs))
    encoder = row.encoder(inputs.output, seed) or inputs.encoder
    if row.distil:
        config = write_config(row_config(row, inputs), inputs.output, row.name)
        commands.append(_distil(config, encoder, seed))
    elif row.start == "copied":
        teacher = inputs.teacher_of(row)
        commands.append(start_student("teacher", teacher, encoder, N_LAYERS, [teacher]))
    config = write_config(train_config(inputs), inputs.output, f"{row.name}-train")
    steps = schedule(config, inputs.corpus, inputs.epochs)["training.max_steps"]
    options = ["--paths.encoder", str(encoder)]
    options += ["--training.eval_frequency", str(max(1, steps // EVALUATIONS))]
    directory = inputs.output / row.name
    commands.append(
        train(config, directory, inputs.corpus, epochs=inputs.epochs, seed=seed, options=options)
    )
    return commands


def _adapt(inputs: EncoderInputs) -> Command:
    """Make the adapted teacher, from the blocks of all rows. The command knows what is done."""
    shared = distil_config(inputs, inputs.encoder, inputs.adapt_learn_rate)
    (text,) = shared["corpus"].pop("train")
    arguments = ["spacy", "distil", "adapt", str(inputs.encoder), "--corpus", text]
    arguments += ["--output", str(inputs.output / ADAPTED), "--resume", "--force"]
    for section in ("corpus", "training"):
        for name, value in shared[section].items():
            arguments += [f"--{section}.{name}", json.dumps(value)]
    return Command(tuple(arguments))


def _distil(config: Path, output: Path, seed: int) -> Command:
    """Distil the encoder. The command knows what is done."""
    arguments = ["spacy", "distil", "encoder", str(config), "--output", str(output)]
    arguments += ["--resume", "--force", "--training.seed", str(seed)]
    return Command(tuple(arguments))


def score(output: Path, row: EncoderRow, seed: int, test: Path) -> Scores:
    """Score a trained seed on the test documents, once."""
    pipeline = output / row.name / f"seed-{seed}" / "model-best"
    return score_once(pipeline, test, output / "scores" / f"{row.name}-seed-{seed}.json")


def main(
    output: RowsDirectory,
    rows: Annotated[list[str], typer.Argument(metavar="ROW", help=", ".join(ROWS))],
    corpus: Annotated[Path, typer.Option(help="Directory with train, dev and test .spacy")],
    encoder: Annotated[Path, typer.Option(help="Directory of the teacher encoder")],
    text: Annotated[Path | None, typer.Option(help="Text to distil on; left out: OUT/text")] = None,
    seeds: Seeds = "0",
    block_size: Annotated[int, typer.Option(help="Number of pieces per block", min=8)] = 128,
    max_blocks: Annotated[int, typer.Option(help="Number of blocks to distil on", min=1)] = 7_900,
    batch_size: Annotated[int, typer.Option(help="Number of blocks per step", min=1)] = 32,
    learn_rate: Annotated[
        float, typer.Option(help="Learning rate of distillation, except for the random start")
    ] = 1e-4,
    adapt_learn_rate: Annotated[
        float, typer.Option(help="Learning rate of the teacher's adaptation")
    ] = 3e-4,
    epochs: Annotated[float, typer.Option(help="Epochs of the pipeline's training", min=0)] = 3,
    dry_run: DryRun = False,
) -> None:
    """Make rows."""
    with friendly_errors():
        inputs = EncoderInputs(
            output=output,
            corpus=corpus,
            encoder=encoder,
            text=text or output / "text",
            block_size=block_size,
            max_blocks=max_blocks,
            batch_size=batch_size,
            learn_rate=learn_rate,
            adapt_learn_rate=adapt_learn_rate,
            epochs=epochs,
        )
        inputs.check()
        # Make all commands first: an error should not come after hours.
        planned = [
            (row, seed, make_commands(row, seed, inputs))
            for row in choose(ROWS, rows)
            for seed in parse_seeds(seeds)
        ]
        for row, seed, commands in planned:
            run_all(commands, dry_run=dry_run)
            if not dry_run:
                score(output, row, seed, corpus / "test.spacy")


if __name__ == "__main__":
    typer.run(main)
