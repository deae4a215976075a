"""Train the students of an ablation of pipeline distillation, all with the same budget and corpus.

    python -m benchmarks.pipeline_distillation.rows OUT ROW [ROW ...] --seeds 0 --epochs 8 \\
        --corpus DIR --teacher PIPELINE --encoder DIR --distilled DIR --text FILE.jsonl

trains `OUT/ROW/seed-N/model-best`. The program prints each command before it runs it:
`scripts.train` for a row that starts from an encoder and learns from gold annotation alone, `spacy
distil pipeline` for the others. It skips finished seeds and continues interrupted ones. All rows
take the same number of steps, with batches of the same size. `ROWS` says how the rows differ.
`--dry-run` only prints the commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from benchmarks.common.options import DryRun, RowsDirectory, Seeds
from benchmarks.common.project import CNN_CONFIG, TRANSFORMER_CONFIG
from project.training import configure, parse_seeds, read_summary, schedule, use_distil_ner
from spacy_distil.errors import ConfigError, friendly_errors

# Names of the encoder, the entity recognizer and the genre classifier in the configs.
ENCODER_PIPE, NER_PIPE, TEXTCAT_PIPE = "transformer", "ner", "textcat"
# Suffixes of the files of an encoder: weights, config, tokenizer.
ENCODER_SUFFIXES = (".safetensors", ".json", ".txt", ".model")


@dataclass(frozen=True)
class StageWeights:
    """A stage of distillation.

    share: share of the steps.
    hidden, soft, gold: weights of hidden states, soft targets and gold annotation.
    """

    share: float
    hidden: float = 0.0
    soft: float = 0.0
    gold: float = 0.0


SOFT = {"soft": StageWeights(1.0, soft=1.0)}
GOLD = {"gold": StageWeights(1.0, gold=1.0)}
HIDDEN_SOFT = {
    "hidden": StageWeights(0.25, hidden=1.0),
    "soft": StageWeights(0.75, soft=1.0),
}
HIDDEN_SOFT_GOLD = {
    "hidden": StageWeights(0.25, hidden=1.0),
    "soft": StageWeights(0.6, soft=1.0),
    "gold": StageWeights(0.15, gold=1.0),
}
SOFT_THEN_GOLD = {"soft": StageWeights(0.5, soft=1.0), "gold": StageWeights(0.5, gold=1.0)}
SOFT_AND_GOLD = {"soft": StageWeights(1.0, soft=1.0, gold=1.0)}


@dataclass(frozen=True)
class PipelineRow:
    """A recipe for a student pipeline.

    title: for the table.
    start: initial weights of the student: "copied", the first layers of the raw encoder;
        "distilled", the encoder that general distillation made of them; "teacher", the first layers
        and the pipes of the trained teacher; "cut", these layers with fewer neurons; "cnn", spaCy's
        CNN pipeline with random weights. The other pipes start with random weights.
    stages: the stages of distillation, by name; other stages are skipped. Empty: gold annotation
        alone, with `spacy train`.
    text: whether the student also learns from unlabelled text.
    before: rows to compare with.
    n_layers: number of layers of the student's encoder.
    n_neurons: neurons of its feed-forward layers, the teacher's most important ones, if it is cut.
    n_pieces: pieces of its vocabulary, the corpus's most frequent ones, if it is cut; 0 for all.
    cut_from: the finished row whose student is cut; empty for the teacher.
    ner: factory of the entity recognizer of teacher and student.
    target: training target of the student's entity recognizer.
    hidden_layers: the layers whose hidden states the student learns, if a stage does that.
    gold_genres: weight of the loss of the genre classifier, which then learns from annotation
        alone; 0 if it learns from the teacher.
    noisy: whether it reads half of the documents with typos in 30 % of their longer words.
    """

    name: str
    title: str
    start: Literal["copied", "distilled", "teacher", "cut", "cnn"]
    stages: Mapping[str, StageWeights] = field(default_factory=dict)
    text: bool = False
    before: tuple[str, ...] = ()
    n_layers: int = 3
    n_neurons: int = 0
    n_pieces: int = 0
    cut_from: str = ""
    ner: Literal["distil_ner", "ner"] = "distil_ner"
    target: Literal["auto", "silver"] = "auto"
    hidden_layers: Literal["last", "even"] = "last"
    gold_genres: float = 0.0
    noisy: bool = False

    @property
    def is_distilled(self) -> bool:
        """Whether `spacy distil pipeline` trains it."""
        return bool(self.stages)

    @property
    def cache(self) -> str:
        """Name of the cache. Rows that record the same of the teacher share one."""
        parts = [self.ner, "text" if self.text else "gold"]
        if any(stage.hidden for stage in self.stages.values()):
            parts.append("hidden")
            if self.hidden_layers != "last":  # the choice depends on the number of layers
                parts.append(f"{self.hidden_layers}{self.n_layers}")
        parts += [self.target] * (self.target != "auto")
        parts += ["tags"] * (self.gold_genres > 0)
        return "-".join(parts)


_ROWS = (
    PipelineRow("copied", "layers copied, gold only", "copied"),
    PipelineRow("distilled", "+ general distillation", "distilled", before=("copied",)),
    PipelineRow(
        "distilled-soft",
        "+ soft targets on gold text",
        "distilled",
        SOFT,
        before=("distilled",),
    ),
    PipelineRow(
        "finetuned", "trained layers and heads, gold only", "teacher", GOLD, before=("copied",)
    ),
    PipelineRow(
        "soft",
        "+ soft targets on gold text",
        "teacher",
        SOFT,
        before=("finetuned", "distilled-soft"),
    ),
    PipelineRow("soft-text", "+ unlabelled text", "teacher", SOFT, text=True, before=("soft",)),
    PipelineRow(
        "hidden-text",
        "+ hidden-state stage",
        "teacher",
        HIDDEN_SOFT,
        text=True,
        before=("soft-text",),
    ),
    PipelineRow(
        "hidden-text-gold",
        "+ gold stage",
        "teacher",
        HIDDEN_SOFT_GOLD,
        text=True,
        before=("hidden-text",),
    ),
    PipelineRow(
        "soft-gold-text",
        "soft targets and gold in one sum, unlabelled text",
        "teacher",
        SOFT_AND_GOLD,
        text=True,
        before=("soft-text", "hidden-text-gold"),
    ),
    PipelineRow("cnn-gold", "CNN pipeline, gold only", "cnn", ner="ner"),
    PipelineRow(
        "cnn",
        "CNN pipeline with distil_ner, soft targets, unlabelled text",
        "cnn",
        SOFT,
        text=True,
        before=("cnn-gold",),
    ),
    PipelineRow(
        "ner-gold", "spaCy's ner: trained layers and heads, gold only", "teacher", GOLD, ner="ner"
    ),
    PipelineRow(
        "ner-soft",
        "spaCy's ner: soft targets on gold text",
        "teacher",
        SOFT,
        before=("ner-gold",),
        ner="ner",
    ),
    PipelineRow(
        "ner-silver",
        "spaCy's ner: silver annotation on gold text",
        "teacher",
        SOFT,
        before=("ner-gold", "ner-soft"),
        ner="ner",
        target="silver",
    ),
)
# The last rows are variations of this one.
BEST = "soft-text"


def _with_variations(rows: Sequence[PipelineRow]) -> dict[str, PipelineRow]:
    """Add variations of the best row. RETURNS: all rows, by name."""
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
    noisy = replace(
        best, name="noise-text", title=f"as '{BEST}', on noisy text", noisy=True, before=(BEST,)
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
    cut = replace(two, start="cut", before=(two.name,))
    smaller = [
        replace(
            cut,
            name=f"{name}-{n_neurons}",
            title=f"{title} and {n_neurons} neurons, as '{two.name}'",
            n_layers=n_layers,
            n_neurons=n_neurons,
        )
        for name, title, n_layers in (("two-layers", "2 layers", 2), ("one-layer", "1 layer", 1))
        for n_neurons in (768, 384)
    ]
    cut_gold = replace(
        two_gold,
        name="two-layers-768-then-gold",
        title=f"2 layers and 768 neurons, as '{gold.name}'",
        start="cut",
        n_neurons=768,
        before=("two-layers-768",),
    )
    smallest = replace(
        cut,
        name="smallest",
        title=f"2 layers, 448 neurons and 10,000 pieces, cut from '{two.name}'",
        n_neurons=448,
        n_pieces=10_000,
        cut_from=two.name,
    )
    smallest_gold = replace(
        cut_gold,
        name="smallest-then-gold",
        title=f"the encoder of '{smallest.name}', as '{gold.name}'",
        n_neurons=448,
        cut_from=smallest.name,
        before=(smallest.name,),
    )
    one = replace(two, name="one-layer", title=f"1 layer, as '{BEST}'", n_layers=1)
    return {
        **by_name,
        **{
            row.name: row
            for row in (
                gold,
                noisy,
                two,
                two_gold,
                one,
                *smaller,
                cut_gold,
                smallest,
                smallest_gold,
            )
        },
    }


ROWS = _with_variations(_ROWS)


@dataclass(frozen=True)
class PipelineInputs:
    """The files that the rows are made from.

    output: directory of all rows.
    corpus: directory with train.spacy, dev.spacy and corpus.json.
    epochs: number of passes over the training corpus.
    encoder: directory of the raw encoder.
    teacher: pipeline with `distil_ner`.
    teacher_ner: pipeline with spaCy's own `ner`.
    distilled: directory of the encoder that general distillation made.
    text: unlabelled text, JSONL.
    gpu_id: for both commands; `None` for their defaults.
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

    def need(self, name: str, row: PipelineRow) -> Path:
        """An input that a row needs. Raise ConfigError if it is missing."""
        path, option = getattr(self, name), name.replace("_", "-")
        if path is None:
            raise ConfigError(f"Row '{row.name}' needs --{option}")
        if not path.exists():
            raise ConfigError(f"--{option} {path}: no such file or directory")
        return Path(path)

    def teacher_of(self, row: PipelineRow) -> Path:
        """The teacher with the entity recognizer of the row."""
        path = self.need("teacher" if row.ner == "distil_ner" else "teacher_ner", row)
        pipe = load_config(path / "config.cfg")["components"].get(NER_PIPE)
        if pipe is not None and pipe["factory"] != row.ner:
            raise ConfigError(
                f"Row '{row.name}' needs a teacher with {row.ner}, but {NER_PIPE} of {path} is "
                f"{pipe['factory']}. Give a teacher with distil_ner as --teacher, and one with "
                "spaCy's own ner as --teacher-ner"
            )
        return path


def make_config(row: PipelineRow, summary: Mapping[str, Any]) -> Config:
    """Make the row's training config from the project's, with [distillation] if the row is
    distilled. It is the same for all seeds.

    summary: content of `corpus.json`.
    """
    path = CNN_CONFIG if row.start == "cnn" else TRANSFORMER_CONFIG
    template = load_config(path, interpolate=False)
    if row.ner == "distil_ner":
        use_distil_ner(template)  # in the CNN pipeline, too
    config = configure(template, summary, ner=row.ner)
    if not row.is_distilled:
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
            raise ConfigError(f"Row '{row.name}' needs entities, but the corpus has none")
        pipes[NER_PIPE] = {"target": row.target}
    if row.gold_genres and TEXTCAT_PIPE in config["nlp"]["pipeline"]:
        pipes[TEXTCAT_PIPE] = {"target": "gold", "weight": row.gold_genres}
    stages = {name: row.stages.get(name, StageWeights(0.0)) for name in ("hidden", "soft", "gold")}
    config["distillation"] = {
        "corpus": "corpora.text" if row.text else None,
        "cache": None,
        "student": student,
        "stages": {name: asdict(stage) for name, stage in stages.items()},
        "pipes": pipes,
    }
    if row.noisy:
        config["distillation"]["noise"] = {"share": 0.5, "rate": 0.3}
    if row.hidden_layers != "last":
        config["distillation"]["hidden"] = {"layers": row.hidden_layers}
    return config


def make_commands(row: PipelineRow, seed: int, inputs: PipelineInputs) -> list[Command]:
    """Make the commands that train one seed of a row, and write the row's config.

    All rows have the steps, batches and evaluations of the transformer's config.
    """
    config = write_config(make_config(row, read_summary(inputs.corpus)), inputs.output, row.name)
    budget = schedule(TRANSFORMER_CONFIG, inputs.corpus, inputs.epochs)
    # The learning rate of the CNN is constant and has no warm-up.
    if not isinstance(load_config(config)["training"]["optimizer"]["learn_rate"], dict):
        budget = {name: value for name, value in budget.items() if "learn_rate" not in name}
    settings: dict[str, Any] = dict(budget)
    commands = []
    if row.start in ("copied", "distilled", "cut"):
        start, settings["paths.encoder"] = _start(row, inputs)
        commands.append(start)
    if not row.is_distilled:
        options = [*_gpu(inputs), *_options(settings)]
        directory, corpus = inputs.output / row.name, inputs.corpus
        command = train(config, directory, corpus, epochs=inputs.epochs, seed=seed, options=options)
        return [*commands, command]
    teacher = inputs.teacher_of(row)
    settings["paths.train"] = inputs.corpus / "train.spacy"
    settings["paths.dev"] = inputs.corpus / "dev.spacy"
    if row.text:
        settings["paths.text"] = inputs.need("text", row)
    paths = [value for name, value in settings.items() if name.startswith("paths.")]
    settings["system.seed"] = seed
    settings["distillation.cache"] = inputs.output / "cache" / row.cache
    output = inputs.output / row.name / f"seed-{seed}"
    arguments = ["spacy", "distil", "pipeline", str(teacher), str(config)]
    arguments += ["--output", str(output), "--resume", "--force", *_gpu(inputs)]
    arguments += _options(settings)
    return [*commands, Command(tuple(arguments), output, (config, teacher, *paths))]


def _start(row: PipelineRow, inputs: PipelineInputs) -> tuple[Command, Path]:
    """Make the encoder that the row starts from. RETURNS: the command and the encoder's path."""
    if row.start == "cut":
        return _cut(row, inputs)
    source = "distilled" if row.start == "distilled" else "teacher"
    encoder = inputs.need("distilled" if row.start == "distilled" else "encoder", row)
    output = inputs.output / row.name / "start"
    files = sorted(file for file in encoder.iterdir() if file.suffix in ENCODER_SUFFIXES)
    return start_student(source, encoder, output, row.n_layers, files), output


def _cut(row: PipelineRow, inputs: PipelineInputs) -> tuple[Command, Path]:
    """Cut the encoder of the trained teacher, or of a student. RETURNS: as `_start`."""
    source = inputs.teacher_of(row)
    if row.cut_from:
        source = inputs.output / row.cut_from / "seed-0" / "model-best"
    encoder = source / ENCODER_PIPE
    output, corpus = inputs.output / row.name / "start", inputs.corpus / "train.spacy"
    arguments = ["spacy", "distil", "student", str(encoder), "--layers", str(row.n_layers)]
    arguments += ["--from", "first", "--ffn", str(row.n_neurons), "--corpus", str(corpus)]
    if row.n_pieces:
        arguments += ["--vocab-size", str(row.n_pieces)]
    command = Command((*arguments, "--output", str(output)), output, (encoder, corpus))
    return command, output


def _gpu(inputs: PipelineInputs) -> list[str]:
    return [] if inputs.gpu_id is None else ["--gpu-id", str(inputs.gpu_id)]


def _options(settings: Mapping[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def main(
    output: RowsDirectory,
    rows: Annotated[list[str], typer.Argument(metavar="ROW", help=", ".join(ROWS))],
    corpus: Annotated[Path, typer.Option(help="Directory with train.spacy, dev.spacy")],
    epochs: Annotated[float, typer.Option(help="Passes over the training corpus", min=0)] = 8,
    seeds: Seeds = "0",
    encoder: Annotated[Path | None, typer.Option(help="The raw encoder")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Pipeline with distil_ner")] = None,
    teacher_ner: Annotated[Path | None, typer.Option(help="Pipeline with spaCy's ner")] = None,
    distilled: Annotated[Path | None, typer.Option(help="The distilled encoder")] = None,
    text: Annotated[Path | None, typer.Option(help="Unlabelled text, .jsonl")] = None,
    gpu_id: Annotated[
        int | None, typer.Option(help="GPU; left out: the default of each command")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train rows."""
    with friendly_errors():
        inputs = PipelineInputs(
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
        # Make all commands first: an error should not come after hours.
        commands = [
            command
            for row in choose(ROWS, rows)
            for seed in parse_seeds(seeds)
            for command in make_commands(row, seed, inputs)
        ]
        run_all(commands, dry_run=dry_run)


if __name__ == "__main__":
    typer.run(main)
