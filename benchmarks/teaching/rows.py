"""What each part of teaching gives: a row for each recipe, with the same budget and corpus.

    python -m benchmarks.teaching.rows OUT ROW [ROW ...] --seeds 0 --epochs 8 --corpus DIR \\
        --teacher PIPELINE --encoder DIR --distilled DIR --text FILE.jsonl

trains `OUT/ROW/seed-N/model-best` and prints each command that it runs: `scripts.train` for a row
that learns from gold alone and starts from an encoder, `spacy distil pipeline` for the rest. A seed
that is finished is not trained again, and one that was interrupted goes on. All rows take the same
number of steps with batches of the same size; `ROWS` has what they differ in. `--dry-run` prints
the commands and runs none.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from spacy.util import load_config
from thinc.api import Config
from wasabi import msg
from weasel.util import get_checksum

from scripts.configure import configure, read_summary
from scripts.train import finish, is_finished, parse_seeds, schedule
from spacy_distil.errors import ConfigError, friendly_errors

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRANSFORMER, CNN = CONFIGS / "train.cfg", CONFIGS / "cnn.cfg"
# Names of the entity recognizer and of the genres' classifier in both.
NER_PIPE, TEXTCAT_PIPE = "ner", "textcat"
# Of the files that make an encoder: weights, config, tokenizer.
ENCODER_SUFFIXES = (".safetensors", ".json", ".txt", ".model")

AnyRow = TypeVar("AnyRow")


@dataclass(frozen=True)
class Stage:
    """share: of the steps. hidden, soft, gold: weights of what is learned."""

    share: float
    hidden: float = 0.0
    soft: float = 0.0
    gold: float = 0.0


SOFT = {"soft": Stage(1.0, soft=1.0)}
GOLD = {"gold": Stage(1.0, gold=1.0)}
HIDDEN_SOFT = {"hidden": Stage(0.25, hidden=1.0), "soft": Stage(0.75, soft=1.0)}
HIDDEN_SOFT_GOLD = {
    "hidden": Stage(0.25, hidden=1.0),
    "soft": Stage(0.6, soft=1.0),
    "gold": Stage(0.15, gold=1.0),
}
SOFT_THEN_GOLD = {"soft": Stage(0.5, soft=1.0), "gold": Stage(0.5, gold=1.0)}
SOFT_AND_GOLD = {"soft": Stage(1.0, soft=1.0, gold=1.0)}


@dataclass(frozen=True)
class Row:
    """One recipe.

    title: how the table calls it.
    start: "copied", the first layers of the raw encoder; "distilled", the encoder that general
        distillation made of them; "teacher", the first layers and the heads of the trained teacher;
        "cnn", spaCy's CNN pipeline, at random. Heads start at random but for "teacher".
    stages: what is learned when, by name; a stage that is not named is skipped. Empty: gold, with
        `spacy train`.
    text: whether unlabelled text comes beside the gold corpus.
    before: rows that this one is compared with, to see what its step gave.
    n_layers: of the student; a CNN has its own.
    ner: entity recognizer of teacher and student.
    target: what the student's entity recognizer learns from the teacher's.
    hidden_layers: whose hidden states are learned, where a stage does so.
    gold_genres: weight of the loss of the classifier of genres where it learns from annotation
        alone; 0 where it learns from the teacher's.
    """

    name: str
    title: str
    start: Literal["copied", "distilled", "teacher", "cnn"]
    stages: Mapping[str, Stage] = field(default_factory=dict)
    text: bool = False
    before: tuple[str, ...] = ()
    n_layers: int = 3
    ner: Literal["distil_ner", "ner"] = "distil_ner"
    target: Literal["auto", "silver"] = "auto"
    hidden_layers: Literal["last", "even"] = "last"
    gold_genres: float = 0.0

    @property
    def is_taught(self) -> bool:
        """Whether `spacy distil pipeline` trains it."""
        return bool(self.stages)

    @property
    def cache(self) -> str:
        """Name of the cache, one for all rows that record the same."""
        parts = [self.ner, "text" if self.text else "gold"]
        if any(stage.hidden for stage in self.stages.values()):
            parts.append("hidden")
            if self.hidden_layers != "last":  # which of the teacher's depends on the student's
                parts.append(f"{self.hidden_layers}{self.n_layers}")
        parts += [self.target] * (self.target != "auto")
        parts += ["tags"] * (self.gold_genres > 0)
        return "-".join(parts)


_ROWS = (
    Row("copied", "layers copied, gold only", "copied"),
    Row("distilled", "+ general distillation", "distilled", before=("copied",)),
    Row(
        "distilled-soft",
        "+ soft targets on gold text",
        "distilled",
        SOFT,
        before=("distilled",),
    ),
    Row("finetuned", "trained layers and heads, gold only", "teacher", GOLD, before=("copied",)),
    Row(
        "soft",
        "+ soft targets on gold text",
        "teacher",
        SOFT,
        before=("finetuned", "distilled-soft"),
    ),
    Row("soft-text", "+ unlabelled text", "teacher", SOFT, text=True, before=("soft",)),
    Row(
        "hidden-text",
        "+ hidden-state stage",
        "teacher",
        HIDDEN_SOFT,
        text=True,
        before=("soft-text",),
    ),
    Row(
        "hidden-text-gold",
        "+ gold stage",
        "teacher",
        HIDDEN_SOFT_GOLD,
        text=True,
        before=("hidden-text",),
    ),
    Row(
        "soft-gold-text",
        "soft targets and gold in one sum, unlabelled text",
        "teacher",
        SOFT_AND_GOLD,
        text=True,
        before=("soft-text", "hidden-text-gold"),
    ),
    Row("cnn-gold", "CNN pipeline, gold only", "cnn", ner="ner"),
    Row(
        "cnn",
        "CNN pipeline, soft targets, unlabelled text",
        "cnn",
        SOFT,
        text=True,
        before=("cnn-gold",),
        ner="ner",
    ),
    Row("ner-gold", "spaCy's ner: trained layers and heads, gold only", "teacher", GOLD, ner="ner"),
    Row(
        "ner-soft",
        "spaCy's ner: soft targets on gold text",
        "teacher",
        SOFT,
        before=("ner-gold",),
        ner="ner",
    ),
    Row(
        "ner-silver",
        "spaCy's ner: silver annotation on gold text",
        "teacher",
        SOFT,
        before=("ner-gold", "ner-soft"),
        ner="ner",
        target="silver",
    ),
)
# The recipe that the last rows are variations of.
BEST = "soft-text"


def _with_variations(rows: Sequence[Row]) -> dict[str, Row]:
    by_name = {row.name: row for row in rows}
    best = by_name[BEST]
    gold = replace(
        best,
        name="then-gold",
        title=f"as '{BEST}', then as long on annotation, which genres learn from alone",
        stages=SOFT_THEN_GOLD,
        before=(BEST,),
        gold_genres=10.0,
    )
    two = replace(
        best, name="two-layers", title=f"2 layers, as '{BEST}'", n_layers=2, before=(BEST,)
    )
    two_gold = replace(
        gold,
        name="two-layers-then-gold",
        title=f"2 layers, as '{gold.name}'",
        n_layers=2,
        before=(two.name, gold.name),
    )
    return {**by_name, **{row.name: row for row in (gold, two, two_gold)}}


ROWS = _with_variations(_ROWS)


@dataclass(frozen=True)
class Inputs:
    """What the rows are trained from.

    output: directory of all rows.
    corpus: directory with train.spacy, dev.spacy and corpus.json.
    teacher, teacher_ner: pipelines, the latter with spaCy's own `ner`.
    encoder: the raw encoder. distilled: what general distillation made of it.
    text: unlabelled text, JSONL.
    gpu_id: of both commands; `None` leaves it to them.
    """

    output: Path
    corpus: Path
    epochs: float
    encoder: Path | None = None
    teacher: Path | None = None
    teacher_ner: Path | None = None
    distilled: Path | None = None
    text: Path | None = None
    gpu_id: int | None = None

    def need(self, name: str, row: Row) -> Path:
        """An input that a row cannot do without."""
        path = getattr(self, name)
        if path is None:
            option = name.replace("_", "-")
            raise ConfigError(f"Row '{row.name}' needs --{option}")
        if not path.exists():
            raise ConfigError(f"--{name.replace('_', '-')} {path}: no such file or directory")
        return Path(path)

    def teacher_of(self, row: Row) -> Path:
        """The teacher that has the row's entity recognizer."""
        path = self.need("teacher" if row.ner == "distil_ner" else "teacher_ner", row)
        pipe = load_config(path / "config.cfg")["components"].get(NER_PIPE)
        if pipe is not None and pipe["factory"] != row.ner:
            raise ConfigError(
                f"Row '{row.name}' needs a teacher with {row.ner}, but {NER_PIPE} of {path} is "
                f"{pipe['factory']}. Teachers with distil_ner are named by --teacher, those with "
                "spaCy's own ner by --teacher-ner"
            )
        return path


@dataclass(frozen=True)
class Command:
    """arguments: of `python -m`.

    output, inputs: it is skipped where `output` says that it was made of these by this command.
        Without an output it knows that by itself.
    """

    arguments: tuple[str, ...]
    output: Path | None = None
    inputs: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return shlex.join(("python", "-m", *self.arguments))

    def run(self) -> None:
        record = {
            "command": list(self.arguments),
            "inputs": {str(path): get_checksum(path) for path in self.inputs},
        }
        if self.output is not None and is_finished(self.output, record):
            msg.info(f"{self.output} is made already")
            return
        print(self, flush=True)  # on one line, to be copied
        subprocess.run([sys.executable, "-m", *self.arguments], check=True)
        if self.output is not None:
            finish(self.output, record)


def make_config(row: Row, summary: Mapping[str, Any]) -> Config:
    """The row's training config, for any seed: the project's own, and [distillation] if taught.

    summary: contents of `corpus.json`.
    """
    template = load_config(CNN if row.start == "cnn" else TRANSFORMER, interpolate=False)
    config = configure(template, summary, ner=row.ner)
    if not row.is_taught:
        return config
    config["paths"]["text"] = None
    if row.text:
        config["corpora"]["text"] = {
            "@readers": "spacy-distil.Texts.v1",
            "path": "${paths.text}",
            "max_words": 200,
            "limit": 0,
        }
    student: dict[str, Any] = {"start": "config"}
    if row.start == "teacher":
        student = {"start": "teacher", "layers": "first", "n_layers": row.n_layers}
    pipes: dict[str, Any] = {}
    if row.target != "auto":
        if NER_PIPE not in config["nlp"]["pipeline"]:
            raise ConfigError(f"Row '{row.name}' is about entities, but the corpus has none")
        pipes[NER_PIPE] = {"target": row.target}
    if row.gold_genres and TEXTCAT_PIPE in config["nlp"]["pipeline"]:
        pipes[TEXTCAT_PIPE] = {"target": "gold", "weight": row.gold_genres}
    stages = {name: row.stages.get(name, Stage(0.0)) for name in ("hidden", "soft", "gold")}
    config["distillation"] = {
        "corpus": "corpora.text" if row.text else None,
        "cache": None,
        "student": student,
        "stages": {
            name: {
                "share": stage.share,
                "hidden": stage.hidden,
                "soft": stage.soft,
                "gold": stage.gold,
            }
            for name, stage in stages.items()
        },
        "pipes": pipes,
    }
    if row.hidden_layers != "last":
        config["distillation"]["hidden"] = {"layers": row.hidden_layers}
    return config


def write_config(row: Row, inputs: Inputs) -> Path:
    path = inputs.output / "configs" / f"{row.name}.cfg"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_config(row, read_summary(inputs.corpus)).to_disk(path)
    return path


def plan(row: Row, seed: int, inputs: Inputs) -> list[Command]:
    """The commands that train one seed of a row; writes the row's config.

    Every row has the steps, batches and evaluations of the transformer's config.
    """
    config = write_config(row, inputs)
    budget = schedule(TRANSFORMER, inputs.corpus, inputs.epochs)
    # Only a schedule that has them: the CNN's rate is constant.
    if not isinstance(load_config(config)["training"]["optimizer"]["learn_rate"], dict):
        budget = {name: value for name, value in budget.items() if "learn_rate" not in name}
    settings: dict[str, Any] = dict(budget)
    commands = []
    if row.start in ("copied", "distilled"):
        start, settings["paths.encoder"] = _start(row, inputs)
        commands.append(start)
    if not row.is_taught:
        arguments = ["scripts.train", str(config), str(inputs.output / row.name)]
        arguments += ["--corpus", str(inputs.corpus), "--epochs", str(inputs.epochs)]
        arguments += ["--seeds", str(seed), *_gpu(inputs), *_options(settings)]
        return [*commands, Command(tuple(arguments))]
    teacher = inputs.teacher_of(row)
    settings["paths.train"] = inputs.corpus / "train.spacy"
    settings["paths.dev"] = inputs.corpus / "dev.spacy"
    if row.text:
        settings["paths.text"] = inputs.need("text", row)
    made_of = [config, teacher, *(v for k, v in settings.items() if k.startswith("paths."))]
    settings["system.seed"] = seed
    settings["distillation.cache"] = inputs.output / "cache" / row.cache
    output = inputs.output / row.name / f"seed-{seed}"
    arguments = ["spacy", "distil", "pipeline", str(teacher), str(config)]
    arguments += ["--output", str(output), "--resume", "--force", *_gpu(inputs)]
    arguments += _options(settings)
    return [*commands, Command(tuple(arguments), output, tuple(made_of))]


def _start(row: Row, inputs: Inputs) -> tuple[Command, Path]:
    """How the encoder comes about that `paths.encoder` names, and where it lies."""
    encoder = inputs.need("encoder", row)
    distilled = inputs.need("distilled", row) if row.start == "distilled" else encoder
    output = inputs.output / row.name / "start"
    arguments = ["scripts.start_student", "distilled" if row.start == "distilled" else "teacher"]
    arguments += [str(output), "--teacher", str(encoder), "--distilled", str(distilled)]
    arguments += ["--finetuned", str(encoder), "--layers", "first", "--n-layers", str(row.n_layers)]
    files = sorted(file for file in distilled.iterdir() if file.suffix in ENCODER_SUFFIXES)
    return Command(tuple(arguments), output, tuple(files)), output


def _gpu(inputs: Inputs) -> list[str]:
    return [] if inputs.gpu_id is None else ["--gpu-id", str(inputs.gpu_id)]


def _options(settings: Mapping[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def choose(names: Sequence[str]) -> list[Row]:
    return choose_from(ROWS, names)


def choose_from(rows: Mapping[str, AnyRow], names: Sequence[str]) -> list[AnyRow]:
    """The rows of these names. rows: all there are, by name."""
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise ConfigError(f"No row {', '.join(unknown)}. Rows: {', '.join(rows)}")
    return [rows[name] for name in names]


def main(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of all rows")],
    rows: Annotated[list[str], typer.Argument(metavar="ROW", help=", ".join(ROWS))],
    corpus: Annotated[Path, typer.Option(help="Directory with train.spacy, dev.spacy")],
    epochs: Annotated[float, typer.Option(help="Passes over the training corpus", min=0)] = 8,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them")] = "0",
    encoder: Annotated[Path | None, typer.Option(help="The raw encoder")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Pipeline with distil_ner")] = None,
    teacher_ner: Annotated[Path | None, typer.Option(help="Pipeline with spaCy's ner")] = None,
    distilled: Annotated[Path | None, typer.Option(help="The distilled encoder")] = None,
    text: Annotated[Path | None, typer.Option(help="Unlabelled text, .jsonl")] = None,
    gpu_id: Annotated[int | None, typer.Option(help="GPU; left out: as the commands do")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the commands alone")] = False,
) -> None:
    """Train some rows."""
    with friendly_errors():
        inputs = Inputs(
            output=output,
            corpus=corpus,
            epochs=epochs,
            encoder=encoder,
            teacher=teacher,
            teacher_ner=teacher_ner,
            distilled=distilled,
            text=text,
            gpu_id=gpu_id,
        )
        # All of them first, so that a missing input is known before hours are spent.
        commands = [
            command
            for row in choose(rows)
            for seed in parse_seeds(seeds)
            for command in plan(row, seed, inputs)
        ]
        for command in commands:
            if dry_run:
                print(command)
            else:
                command.run()


if __name__ == "__main__":
    typer.run(main)
