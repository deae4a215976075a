"""Train the teachers and students of this benchmark, and quantize the students.

    python -m benchmarks.languages.rows OUT ROW [ROW ...] --data DIR --encoder DIR --ewt DIR

DIR of --data is what `benchmarks.languages.corpora` wrote, with `text_LANG.jsonl` of
`benchmarks.pipeline_distillation.text` for en, de and fr. --encoder is an encoder for many
languages, and --ewt the project's corpus `corpus/build/ewt`. The rows are listed in `ROWS`. The
program prints each command before it runs it, and skips finished ones. `--dry-run` only prints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common.commands import Command, choose, run_all
from benchmarks.common.options import DryRun
from spacy_distil.errors import friendly_errors

# Languages of the texts that teach across languages.
LANGUAGES = ("en", "de", "fr", "sv", "pt")


@dataclass(frozen=True)
class LanguageRow:
    """A teacher or a student.

    lang: of its annotation.
    pipes: of a teacher; empty for a student.
    layers: of a student; it takes the teacher's lowest.
    n_pieces: of a student's vocabulary; 0 for all.
    texts: languages of the unlabelled text of a student.
    n_texts: documents of it, as many of each language, if there are several languages.
    steps: of 1,000 words for teachers, of 500 for students.
    """

    name: str
    lang: str
    pipes: str = ""
    layers: int = 4
    n_pieces: int = 0
    texts: tuple[str, ...] = ()
    n_texts: int = 10_000
    steps: int = 400

    def commands(self, output: Path, data: Path, encoder: Path, ewt: Path) -> list[Command]:
        """The commands that make the row in `output`."""
        path, config = output / self.name, output / "configs" / f"{self.name}.cfg"
        train, dev = (
            ewt / f"{split}.spacy" if self.lang == "en" else data / f"{self.lang}_{split}.spacy"
            for split in ("train", "dev")
        )
        paths = ["--paths.train", str(train), "--paths.dev", str(dev)]
        steps = ["--training.max_steps", str(self.steps)]
        steps += ["--training.eval_frequency", str(self.steps // 4)]
        init, cpu = ["spacy", "distil", "init-config"], ["--cpu", "--force"]
        if self.pipes:
            options = ["--lang", self.lang, "--pipeline", self.pipes, "--encoder", str(encoder)]
            return [
                Command((*init, "train", str(config), *options, *cpu)),
                Command(
                    ("spacy", "train", str(config), "--output", str(path), *paths, *steps), path
                ),
            ]
        teacher = output / f"{self.lang}-teacher" / "model-best"
        files = {lang: str(data / f"text_{lang}.jsonl") for lang in self.texts}
        options = ["--paths.text", next(iter(files.values()))]
        if len(files) > 1:
            options = ["--paths.text", json.dumps(files), "--corpora.text.alpha", "0"]
            options += ["--corpora.text.limit", str(self.n_texts)]
        options += ["--distillation.student.n_layers", str(self.layers)]
        if self.n_pieces:
            options += ["--distillation.student.vocabulary.size", str(self.n_pieces)]
        cache = output / "cache" / "-".join((self.lang, *self.texts))
        options += ["--distillation.cache", str(cache)]
        distil = ["spacy", "distil", "pipeline", str(teacher), str(config), "--output", str(path)]
        return [
            Command(
                (*init, "pipeline", str(config), "--teacher", str(teacher), "--cpu", "--force")
            ),
            Command((*distil, "--resume", "--force", *paths, *steps, *options)),
            Command(
                (
                    *("spacy", "distil", "quantize", str(path / "model-best")),
                    *(str(output / f"{self.name}-int8"), "--corpus", str(dev), "--force"),
                ),
                output / f"{self.name}-int8",
            ),
        ]


_BOTH, _TAGS = "morphologizer,distil_ner", "morphologizer"
_ROWS = (
    LanguageRow("en-teacher", "en", _BOTH, steps=1000),
    LanguageRow("de-teacher", "de", _BOTH, steps=450),
    LanguageRow("fr-teacher", "fr", _TAGS, steps=300),
    *(LanguageRow(f"en-{n}-layers", "en", layers=n, texts=("en",), steps=1200) for n in (6, 4, 3)),
    LanguageRow("en-alone", "en", texts=("en",)),
    LanguageRow("en-across", "en", texts=LANGUAGES),
    *(
        LanguageRow(f"de-{n or 'whole'}", "de", n_pieces=n, texts=("de",))
        for n in (0, 15_000, 8_000)
    ),
    LanguageRow("fr-15000", "fr", n_pieces=15_000, texts=("fr",)),
)
ROWS = {row.name: row for row in _ROWS}


def main(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of all pipelines")],
    rows: Annotated[list[str], typer.Argument(metavar="ROW ...", help=", ".join(ROWS))],
    data: Annotated[Path, typer.Option(help="Directory of benchmarks.languages.corpora")],
    encoder: Annotated[Path, typer.Option(help="Encoder for many languages")],
    ewt: Annotated[Path, typer.Option(help="The project's corpus/build/ewt")],
    dry_run: DryRun = False,
) -> None:
    """Train rows."""
    with friendly_errors():
        for row in choose(ROWS, rows):
            run_all(row.commands(output, data, encoder, ewt), dry_run=dry_run)


if __name__ == "__main__":
    typer.run(main)
