"""Train a teacher to answer questions, distil students from it, and score all of them.

    python -m benchmarks.squad TRAIN DEV --encoder bert-base-uncased --layers 6 --output squad

TRAIN and DEV are files of SQuAD 1.1 or 2.0, such as train-v2.0.json and dev-v2.0.json. Training is
chosen by `--dev-train`, or by the first tenth of DEV, which is not scored then. If some questions
of TRAIN have no answer, so may others, and the threshold is tuned on the same part. The output
directory keeps the pipelines: what is there is not trained again. Scores are exact match and F1 as
the official scripts compute them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from spacy.language import Language
from wasabi import msg

from benchmarks.common.intervals import cell, percent, with_interval
from benchmarks.common.results import report_results, timestamp
from benchmarks.common.rows import Plan, make_rows
from benchmarks.squad.split import read_articles, write_articles
from spacy_distil.errors import friendly_errors
from spacy_distil.pairs.squad import Squad, read_squad, score_answer
from spacy_distil.pipelines import load_pipeline
from spacy_distil.tables import Table


def main(
    train: Annotated[Path, typer.Argument(help="Questions to train on.")],
    dev: Annotated[Path, typer.Argument(help="Questions to score on.")],
    encoder: Annotated[str, typer.Option("--encoder", help="Encoder of the teacher.")],
    output: Annotated[Path, typer.Option("--output", help="Directory of the pipelines.")],
    dev_train: Annotated[
        Path | None, typer.Option("--dev-train", help="Questions to choose the best step on.")
    ] = None,
    layers: Annotated[int, typer.Option("--layers", help="Layers of the students.")] = 3,
    words: Annotated[int, typer.Option("--words", help="Words of paragraphs in a batch.")] = 1000,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the training.")] = 5,
    results: Annotated[Path | None, typer.Option("--results", help="Directory of results.")] = None,
    stem: Annotated[str, typer.Option("--stem", help="Name of their files.")] = "squad",
) -> None:
    """Train, distil and score on questions."""
    with friendly_errors():
        date = timestamp()
        questions = list(read_squad(train))
        if dev_train is None:
            dev_train, dev = split(dev, output)
        has_missing = not all(answers for _, _, answers in questions)
        n_words = sum(len(context.split()) for context, _, _ in questions)
        steps = max(1, round(epochs * n_words / words))
        plan = Plan(
            *("distil_qa", train, dev_train, encoder, layers, words, steps, steps, output),
            settings=() if has_missing else ("--components.distil_qa.no_answer", "false"),
        )
        found: dict[str, dict[str, Any]] = {}
        for row, path in make_rows(plan).items():
            nlp = load_pipeline(path)
            pipe: Any = nlp.get_pipe("distil_qa")
            if has_missing:
                pipe.tune_threshold(Squad(dev_train)(nlp))
            found[row] = score(nlp, dev)
            msg.info(f"{row}: {found[row]}")
        rows = [
            [row, *(cell(own[key], found["teacher"][key]) for key in ("em", "f1"))]
            for row, own in found.items()
        ]
        note = (
            f"{len(list(read_squad(dev))):,} questions, {len(questions):,} in training. In %, with "
            "95 % bootstrap intervals over questions; in brackets the share of the teacher's. "
            "copied: the teacher's lowest layers, trained on annotation alone. taught: the same, "
            "by the teacher's soft targets on the same questions. int8: the latter, quantized."
        )
        table = Table("Question answering", ["pipeline", "exact match", "F1"], rows)
        report_results([table, note], {"results": found}, output=results, stem=stem, date=date)


def split(dev: Path, output: Path) -> tuple[Path, Path]:
    """Split articles: the first tenth chooses the best step, the others are scored."""
    articles = read_articles(dev)
    n = max(1, len(articles) // 10)
    paths = output / "dev-train.json", output / "dev-test.json"
    for path, own in zip(paths, (articles[:n], articles[n:]), strict=True):
        write_articles(own, path)
    return paths


def score(nlp: Language, path: Path) -> dict[str, Any]:
    """Score a pipeline on the questions of a file. RETURNS: score and interval of EM and F1."""
    pipe: Any = nlp.get_pipe("distil_qa")
    questions = list(read_squad(path))
    docs = {context: nlp.make_doc(context) for context, _, _ in questions}
    found = pipe.answer_pairs([(question, docs[context]) for context, question, _ in questions])
    scores = np.array(
        [
            score_answer(own[0].text if own else "", [each["text"] for each in answers])
            for own, (_, _, answers) in zip(found, questions, strict=True)
        ]
    )
    return {
        name: with_interval(values, percent)
        for name, values in zip(("em", "f1"), scores.T, strict=True)
    }


if __name__ == "__main__":
    typer.run(main)
