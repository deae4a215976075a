"""What each objective of encoder distillation gives: a row for each recipe, with the same budget.

    python -m benchmarks.encoder_distillation.rows OUT ROW [ROW ...] --seeds 0 --corpus DIR --encoder DIR

makes the encoder `OUT/ROW/encoder/seed-N` from the first layers of a teacher, trains the project's
pipeline on it for a few epochs, `OUT/ROW/seed-N/model-best`, and scores that on `DIR/test.spacy`.
Every command is printed. One that is finished is not run again, and one that was interrupted goes
on. All rows see the same blocks of text, from `benchmarks.encoder_distillation.text`, in steps of the same
size; `ROWS` has what they differ in. `--dry-run` prints the commands and runs none.

Some rows have a teacher with a masked-LM head, which is the encoder after masked-LM training of all
its layers on the same text: `OUT/adapted`, made by whichever of these rows comes first. Do not
start two of them at once before it is there.
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

from benchmarks.encoder_distillation.text import DEV, TRAIN
from benchmarks.common.comparison import score_once
from benchmarks.pipeline_distillation.rows import TRANSFORMER, Command, choose_from
from scripts.configure import configure, read_summary
from scripts.train import parse_seeds, schedule
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.scores import Scores
from spacy_distil.runs.files import write_text

N_LAYERS = 3
# Held out, for the accuracy of masked-LM heads.
DEV_BLOCKS = 100
# Directory of the adapted teacher.
ADAPTED = "adapted"
CORPUS_FILES = ("train.spacy", "dev.spacy", "test.spacy", "corpus.json")
# Evaluations of a pipeline in training; the last is after its last step.
EVALUATIONS = 2

Block = dict[str, Any]


def objective(kind: str, weight: float = 1.0, **settings: Any) -> Block:
    return {"@distil_objectives": f"spacy-distil.{kind}.v1", "weight": weight, **settings}


COSINE = {"cosine": objective("Cosine")}
HIDDEN = {"hidden": objective("HiddenStates")}
RELATIONS = {"relations": objective("Relations")}
MASKED_LM = {"masked_lm": objective("MaskedLM", 2.0)}
SOFT_TARGETS = {"soft_targets": objective("SoftTargets", 5.0)}
DISTILBERT = {**SOFT_TARGETS, **MASKED_LM, **COSINE}


def staged(*stages: tuple[float, Mapping[str, Block]]) -> Block:
    """Objectives one group after another. stages: each group's share of the steps."""
    blocks = [(share, list(objectives)) for share, objectives in stages]
    return {
        "objectives": {name: block for _, group in stages for name, block in group.items()},
        "stages": {
            "_".join(names): {"objectives": names, "share": share} for share, names in blocks
        },
    }


@dataclass(frozen=True)
class Row:
    """One recipe.

    title: how the table calls it.
    start: what the student begins as: "copied", the teacher's first layers; "random", as many new
        ones; "teacher", the whole teacher.
    distil: its own part of the config of `spacy distil encoder`; empty where it is not distilled.
    adapted: whether the teacher is the adapted one, which has a masked-LM head.
    before: rows that this one is compared with, to see what its step gave.
    learn_rate: of its distillation; `None` for that of all rows.
    """

    name: str
    title: str
    start: Literal["copied", "random", "teacher"] = "copied"
    distil: Mapping[str, Any] = field(default_factory=dict)
    adapted: bool = False
    before: tuple[str, ...] = ()
    learn_rate: float | None = None

    def encoder(self, output: Path, seed: int) -> Path | None:
        """What the row's pipeline is trained on; `None` is the teacher that was given."""
        if self.start == "teacher":
            return output / ADAPTED if self.adapted else None
        return output / self.name / "encoder" / f"seed-{seed}"


_ROWS = (
    Row("teacher", "all layers of the teacher", "teacher"),
    Row("copied", "layers copied"),
    Row(
        "random",
        "random start, cosine",
        "random",
        {"objectives": COSINE},
        before=("copied",),
        learn_rate=5e-4,
    ),
    Row("cosine", "+ cosine", distil={"objectives": COSINE}, before=("copied", "random")),
    Row("hidden", "+ hidden states", distil={"objectives": HIDDEN}, before=("copied",)),
    Row("relations", "+ relations", distil={"objectives": RELATIONS}, before=("copied",)),
    Row(
        "relations-and-cosine",
        "+ relations and cosine",
        distil={"objectives": {**RELATIONS, **COSINE}},
        before=("relations", "cosine"),
    ),
    Row(
        "relations-then-cosine",
        "+ relations, then cosine",
        distil=staged((0.5, RELATIONS), (0.5, COSINE)),
        before=("relations-and-cosine",),
    ),
    Row(
        "hidden-then-cosine",
        "+ hidden states, then cosine",
        distil=staged((0.5, HIDDEN), (0.5, COSINE)),
        before=("relations-then-cosine",),
    ),
    Row(
        "adapted-teacher",
        "all layers of the adapted teacher",
        "teacher",
        adapted=True,
        before=("teacher",),
    ),
    Row("adapted-copied", "adapted: layers copied", adapted=True, before=("copied",)),
    Row(
        "masked-lm",
        "adapted: + masked LM",
        distil={"objectives": MASKED_LM},
        adapted=True,
        before=("copied", "adapted-copied"),
    ),
    Row(
        "soft-targets",
        "adapted: + soft targets",
        distil={"objectives": SOFT_TARGETS},
        adapted=True,
        before=("copied", "adapted-copied"),
    ),
    Row(
        "soft-targets-masked-lm",
        "adapted: + soft targets and masked LM",
        distil={"objectives": {**SOFT_TARGETS, **MASKED_LM}},
        adapted=True,
        before=("copied", "soft-targets", "masked-lm"),
    ),
    Row(
        "distilbert",
        "adapted: + DistilBERT's objectives",
        distil={"objectives": DISTILBERT},
        adapted=True,
        before=("copied", "soft-targets-masked-lm"),
    ),
    Row(
        "relations-then-distilbert",
        "adapted: + relations, then DistilBERT's",
        distil=staged((0.5, RELATIONS), (0.5, DISTILBERT)),
        adapted=True,
        before=("distilbert",),
    ),
)
ROWS = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Inputs:
    """What the rows are made from, and their budget.

    output: directory of all rows.
    corpus: directory with the files of `CORPUS_FILES`.
    encoder: the teacher. text: directory with the text to distil on.
    block_size, max_blocks, batch_size: pieces in a block, blocks of text, blocks in a step.
    learn_rate, adapt_learn_rate: of distillation, where a row has none of its own, and of the
        adaptation of the teacher.
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
        for path in (
            *(self.corpus / name for name in CORPUS_FILES),
            self.encoder / "config.json",
            self.text / TRAIN,
            self.text / DEV,
        ):
            if not path.is_file():
                raise ConfigError(
                    f"No such file: {path}. --corpus is what the project's 'corpus' command makes, "
                    "--encoder a local encoder, --text what benchmarks.encoder_distillation.text writes"
                )

    def teacher_of(self, row: Row) -> Path:
        return self.output / ADAPTED if row.adapted else self.encoder


# Configs


def distil_config(inputs: Inputs, teacher: Path, learn_rate: float) -> Block:
    """What the configs of all runs have in common: the text, and how long they are."""
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


def row_config(row: Row, inputs: Inputs) -> Config:
    """The row's config of `spacy distil encoder`, for any seed."""
    learn_rate = inputs.learn_rate if row.learn_rate is None else row.learn_rate
    config = Config(distil_config(inputs, inputs.teacher_of(row), learn_rate))
    start = "random" if row.start == "random" else "teacher"
    student = {"layers": "first", "n_layers": N_LAYERS, "start": start}
    return config.merge({"student": student}).merge(dict(row.distil))


def train_config(inputs: Inputs) -> Config:
    """The pipeline's training config, of all rows: the project's own."""
    template = load_config(TRANSFORMER, interpolate=False)
    return configure(template, read_summary(inputs.corpus), ner="distil_ner")


def write_config(config: Config, name: str, inputs: Inputs) -> Path:
    path = inputs.output / "configs" / f"{name}.cfg"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, config.to_str())
    return path


# Commands


def plan(row: Row, seed: int, inputs: Inputs) -> list[Command]:
    """The commands that make one seed of a row; writes their configs."""
    commands = []
    if row.adapted:
        commands.append(_adapt(inputs))
    encoder = row.encoder(inputs.output, seed) or inputs.encoder
    if row.distil:
        config = write_config(row_config(row, inputs), row.name, inputs)
        commands.append(_distil(config, encoder, seed))
    elif row.start == "copied":
        commands.append(_copy_layers(inputs.teacher_of(row), encoder))
    return [*commands, _train(row, seed, encoder, inputs)]


def _adapt(inputs: Inputs) -> Command:
    """Makes the adapted teacher, from the blocks of all rows; see `_distil`."""
    shared = distil_config(inputs, inputs.encoder, inputs.adapt_learn_rate)
    (text,) = shared["corpus"].pop("train")
    arguments = ["spacy", "distil", "adapt", str(inputs.encoder), "--corpus", text]
    arguments += ["--output", str(inputs.output / ADAPTED), "--resume", "--force"]
    for section in ("corpus", "training"):
        for name, value in shared[section].items():
            arguments += [f"--{section}.{name}", json.dumps(value)]
    return Command(tuple(arguments))


def _distil(config: Path, output: Path, seed: int) -> Command:
    """A run that knows by itself whether it is finished, or where to go on."""
    arguments = ["spacy", "distil", "encoder", str(config), "--output", str(output)]
    arguments += ["--resume", "--force", "--training.seed", str(seed)]
    return Command(tuple(arguments))


def _copy_layers(teacher: Path, output: Path) -> Command:
    arguments = ["scripts.start_student", "teacher", str(output), "--teacher", str(teacher)]
    # Of the other sources, which this one does not read.
    arguments += ["--distilled", str(teacher), "--finetuned", str(teacher)]
    arguments += ["--layers", "first", "--n-layers", str(N_LAYERS)]
    return Command(tuple(arguments), output, (teacher,))


def _train(row: Row, seed: int, encoder: Path, inputs: Inputs) -> Command:
    config = write_config(train_config(inputs), f"{row.name}-train", inputs)
    steps = schedule(config, inputs.corpus, inputs.epochs)["training.max_steps"]
    arguments = ["scripts.train", str(config), str(inputs.output / row.name)]
    arguments += ["--corpus", str(inputs.corpus), "--epochs", str(inputs.epochs)]
    arguments += ["--seeds", str(seed), "--paths.encoder", str(encoder)]
    arguments += ["--training.eval_frequency", str(max(1, steps // EVALUATIONS))]
    return Command(tuple(arguments))


def score(output: Path, row: Row, seed: int, test: Path) -> Scores:
    """The test scores of a trained seed; made once."""
    pipeline = output / row.name / f"seed-{seed}" / "model-best"
    return score_once(pipeline, test, output / "scores" / f"{row.name}-seed-{seed}.json")


def main(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of all rows")],
    rows: Annotated[list[str], typer.Argument(metavar="ROW", help=", ".join(ROWS))],
    corpus: Annotated[Path, typer.Option(help="Directory with train, dev and test .spacy")],
    encoder: Annotated[Path, typer.Option(help="The teacher encoder")],
    text: Annotated[Path | None, typer.Option(help="Text to distil on; OUT/text")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them")] = "0",
    block_size: Annotated[int, typer.Option(help="Pieces in a block", min=8)] = 128,
    max_blocks: Annotated[int, typer.Option(help="Blocks to distil on", min=1)] = 7_900,
    batch_size: Annotated[int, typer.Option(help="Blocks in a step", min=1)] = 32,
    learn_rate: Annotated[
        float, typer.Option(help="Of distillation, but of a random start")
    ] = 1e-4,
    adapt_learn_rate: Annotated[float, typer.Option(help="Of the teacher's adaptation")] = 3e-4,
    epochs: Annotated[float, typer.Option(help="Of the pipeline's training", min=0)] = 3,
    dry_run: Annotated[bool, typer.Option(help="Print the commands alone")] = False,
) -> None:
    """Make some rows."""
    with friendly_errors():
        inputs = Inputs(
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
        # All of them first, so that a mistake is known before hours are spent.
        planned = [
            (row, seed, plan(row, seed, inputs))
            for row in choose_from(ROWS, rows)
            for seed in parse_seeds(seeds)
        ]
        for row, seed, commands in planned:
            for command in commands:
                if dry_run:
                    print(command)
                else:
                    command.run()
            if not dry_run:
                score(output, row, seed, corpus / "test.spacy")


if __name__ == "__main__":
    typer.run(main)
