"""Score every seed of a pipeline on the test documents, as `spacy evaluate` does.

    python -m scripts.evaluate PIPELINES METRICS --corpus DIR

The scores of PIPELINES/seed-N/model-best go to METRICS-seed-N.json. If the corpus has a
test-LANG.spacy for each of several languages, their scores go to METRICS-seed-N-LANG.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import spacy.cli
import typer
from wasabi import msg

from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.scores import COLUMNS


def main(
    pipelines: Annotated[Path, typer.Argument(help="Directory that scripts.train wrote")],
    metrics: Annotated[Path, typer.Argument(help="Path of the scores, without '-seed-N.json'")],
    corpus: Annotated[Path, typer.Option(help="Directory with test.spacy")],
    gpu_id: Annotated[int, typer.Option(help="GPU for spaCy's own layers; -1 for none")] = -1,
) -> None:
    """Score every seed of a pipeline on the test documents, in all and by language."""
    with friendly_errors():
        seeds = sorted(pipelines.glob("seed-*"))
        if not seeds:
            raise ConfigError(f"{pipelines} has no seed-N. Train the pipeline first.")
        metrics.parent.mkdir(parents=True, exist_ok=True)
        tests = [corpus / "test.spacy", *sorted(corpus.glob("test-*.spacy"))]
        for seed in seeds:
            scores = {}
            for test in tests:
                lang = test.stem.removeprefix("test")  # "" or "-fr"
                scores[lang.removeprefix("-") or "all"] = spacy.cli.evaluate(
                    str(seed / "model-best"),
                    test,
                    output=Path(f"{metrics}-{seed.name}{lang}.json"),
                    use_gpu=gpu_id,
                    silent=lang != "",
                )
            if len(tests) > 1:
                show(scores)


def show(scores: dict[str, dict[str, Any]]) -> None:
    """Print a table with a row for each language."""
    columns = [
        column
        for column in COLUMNS
        if column.is_task and any(own.get(column.key) is not None for own in scores.values())
    ]
    rows = [
        (lang, *(_percent(own.get(column.key)) for column in columns))
        for lang, own in scores.items()
    ]
    header = ("", *(column.key for column in columns))
    msg.table(rows, header=header, divider=True, aligns=("l", *("r" for _ in columns)))


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{score:.1%}"


if __name__ == "__main__":
    typer.run(main)
