"""Sort the paragraphs that vectors have found for a question by a `distil_pair`.

    python -m benchmarks.vectors.rerank pairs vectors train.json pairs.jsonl
    python -m spacy distil init-config train pair.cfg --pipeline distil_pair --encoder ENCODER
    python -m spacy train pair.cfg --output reranker --components.distil_pair.output probability \
        --paths.train pairs.jsonl --paths.dev pairs.jsonl
    python -m benchmarks.vectors.rerank score vectors reranker/model-best test.json all.json

The first command writes each question with its paragraph, and with the most similar other ones, by
the vectors of a pipeline. The last one lets each question of a file look for its paragraph among
all of another file, and sorts the nearest ones again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from wasabi import msg

from benchmarks.common.intervals import cell, percent, with_interval
from benchmarks.common.results import report_results, timestamp
from benchmarks.vectors.scores import encode, read_questions
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.tables import Table

app = typer.Typer()
# The label of pairs.
RELEVANT = "relevant"


@app.command("pairs")
def write_pairs(
    vectors: Annotated[Path, typer.Argument(help="Pipeline with vectors.")],
    questions: Annotated[Path, typer.Argument(help="Questions in SQuAD's format.")],
    output: Annotated[Path, typer.Argument(help="JSON lines to write.")],
    negatives: Annotated[int, typer.Option("--negatives", help="Others of each question.")] = 1,
) -> None:
    """Write questions with their paragraph, and with others that are like it."""
    with friendly_errors():
        texts, numbers, paragraphs = read_questions(questions)
        nlp = load_pipeline(vectors)
        order = np.argsort(-(encode(nlp, texts) @ encode(nlp, paragraphs).T), axis=1)
        with output.open("w", encoding="utf8") as file:
            for text, own, found in zip(texts, numbers, order.tolist(), strict=True):
                others = [i for i in found if i != own][:negatives]
                for i in (own, *others):
                    cats = {RELEVANT: float(i == own)}
                    pair = {"text": text, "other": paragraphs[i], "cats": cats}
                    file.write(json.dumps(pair) + "\n")
        msg.good(f"Wrote {output}")


@app.command("score")
def score(
    vectors: Annotated[Path, typer.Argument(help="Pipeline with vectors.")],
    reranker: Annotated[Path, typer.Argument(help="Pipeline with a distil_pair.")],
    questions: Annotated[Path, typer.Argument(help="Questions in SQuAD's format.")],
    among: Annotated[Path, typer.Argument(help="All paragraphs, in SQuAD's format.")],
    top: Annotated[int, typer.Option("--top", help="Paragraphs that are sorted again.")] = 10,
    output: Annotated[Path | None, typer.Option("--output", help="Directory of results.")] = None,
    stem: Annotated[str, typer.Option("--stem", help="Name of their files.")] = "rerank",
) -> None:
    """Score both orders of paragraphs: mean reciprocal rank and recall at 1."""
    with friendly_errors():
        date = timestamp()
        texts, numbers, own = read_questions(questions)
        paragraphs = read_questions(among)[2]
        places = np.array([paragraphs.index(own[number]) for number in numbers])
        nlp = load_pipeline(vectors)
        order = np.argsort(-(encode(nlp, texts) @ encode(nlp, paragraphs).T), axis=1)
        nearest = order[:, :top]
        pipe: Any = load_pipeline(reranker).get_pipe("distil_pair")
        pairs = [
            (text, paragraphs[i])
            for text, found in zip(texts, nearest.tolist(), strict=True)
            for i in found
        ]
        relevance = pipe.predict_pairs(pairs)[:, 0].reshape(nearest.shape)
        again = order.copy()
        again[:, :top] = np.take_along_axis(nearest, np.argsort(-relevance, axis=1), axis=1)
        results: dict[str, dict[str, Any]] = {}
        for name, each in (("by vectors", order), (f"first {top} sorted again", again)):
            ranks = 1 + (each == places[:, None]).argmax(axis=1)
            results[name] = {
                "MRR": with_interval(1 / ranks, percent),
                "recall at 1": with_interval(ranks == 1, percent),
            }
        rows = [[name, *map(cell, each.values())] for name, each in results.items()]
        note = (
            f"{len(texts):,} questions look for their paragraph among {len(paragraphs):,}. In %, "
            "with 95 % bootstrap intervals over questions."
        )
        table = Table("Sorting what vectors have found", ["order", "MRR", "recall at 1"], rows)
        report_results([table, note], {"results": results}, output=output, stem=stem, date=date)


if __name__ == "__main__":
    app()
