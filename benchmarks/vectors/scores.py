"""Score vectors of texts of several pipelines: similarity, retrieval and classification.

    python -m benchmarks.vectors.scores teacher student student-int8 --data DIR

DIR has directories `sick` (SICK's test pairs, for Spearman's correlation of cosine and
relatedness), `xquad` (questions that look for their paragraph among all paragraphs: recall at 1 and
mean reciprocal rank) and `banking77` (intents by the most similar training texts). A pipeline has a
`distil_vectors`, or it is scored by the mean of its token vectors.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from spacy.language import Language
from wasabi import msg

from benchmarks.common.intervals import cell, with_interval
from benchmarks.common.results import report_results, timestamp
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.tables import Table
from spacy_distil.vectors.losses import unit
from spacy_distil.vectors.scoring import spearman

NEIGHBOURS = 5


def encode(nlp: Language, texts: Sequence[str]) -> np.ndarray:
    """Make vectors of the length 1, (n_texts, width)."""
    vectors: list[Any] = [doc.vector for doc in nlp.pipe(texts, batch_size=64)]
    return np.asarray(unit(np.stack(vectors))[0])


def read_sick(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Read pairs of sentences and how related they are, from 1 to 5."""
    with path.open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return (
        [row["sentence_A"] for row in rows],
        [row["sentence_B"] for row in rows],
        [float(row["relatedness_score"]) for row in rows],
    )


def read_questions(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Read questions in SQuAD's format. RETURNS: (questions, number of each paragraph, texts)."""
    questions: list[str] = []
    numbers: list[int] = []
    paragraphs: list[str] = []
    for article in json.loads(path.read_text(encoding="utf8"))["data"]:
        for paragraph in article["paragraphs"]:
            for each in paragraph["qas"]:
                questions.append(each["question"])
                numbers.append(len(paragraphs))
            paragraphs.append(paragraph["context"])
    return questions, numbers, paragraphs


def read_intents(path: Path) -> tuple[list[str], list[str]]:
    """Read texts and their intents."""
    with path.open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def score_similarity(nlp: Language, data: Path) -> dict[str, tuple[Any, Callable[..., float]]]:
    """Correlate cosines with relatedness."""
    left, right, related = read_sick(data / "sick" / "SICK_test_annotated.txt")
    cosines = (encode(nlp, left) * encode(nlp, right)).sum(axis=1)
    pairs = np.stack([cosines, related], axis=1)
    return {"SICK, Spearman": (pairs, lambda own: 100 * spearman(own[:, 0], own[:, 1]))}


def score_retrieval(
    nlp: Language, data: Path, lang: str
) -> dict[str, tuple[Any, Callable[..., float]]]:
    """Let questions look for their paragraph among the English ones."""
    questions, numbers, _ = read_questions(data / "xquad" / f"xquad.{lang}.json")
    paragraphs = read_questions(data / "xquad" / "xquad.en.json")[2]
    cosines = encode(nlp, questions) @ encode(nlp, paragraphs).T
    own = cosines[np.arange(len(questions)), numbers]
    ranks = (cosines >= own[:, None]).sum(axis=1)
    name = "XQuAD" if lang == "en" else f"XQuAD {lang} → en"
    return {
        f"{name}, recall at 1": (ranks, lambda found: 100 * float((found == 1).mean())),
        f"{name}, MRR": (ranks, lambda found: 100 * float((1 / found).mean())),
    }


def score_intents(nlp: Language, data: Path) -> dict[str, tuple[Any, Callable[..., float]]]:
    """Let test texts take the intent of most of their nearest training texts."""
    train, intents = read_intents(data / "banking77" / "banking_data" / "train.csv")
    test, gold = read_intents(data / "banking77" / "banking_data" / "test.csv")
    nearest = np.argsort(-(encode(nlp, test) @ encode(nlp, train).T), axis=1)[:, :NEIGHBOURS]
    # Of equally many, the nearest: Counter keeps the order.
    found = [Counter(intents[i] for i in own).most_common(1)[0][0] for own in nearest]
    right = np.array([one == other for one, other in zip(found, gold, strict=True)])
    return {"BANKING77, kNN accuracy": (right, lambda own: 100 * float(own.mean()))}


def main(
    pipelines: Annotated[list[Path], typer.Argument(help="Pipelines, the teacher first")],
    data: Annotated[Path, typer.Option(help="Directory of the data sets")],
    langs: Annotated[str, typer.Option(help="Languages of the questions of XQuAD")] = "en",
    output: Annotated[Path | None, typer.Option(help="Directory for the results")] = None,
    stem: Annotated[str, typer.Option(help="Name of the files")] = "vectors",
) -> None:
    """Score vectors of texts."""
    with friendly_errors():
        date = timestamp()
        results: dict[str, dict[str, Any]] = {}
        for path in pipelines:
            nlp = load_pipeline(path)
            found = score_similarity(nlp, data) | score_intents(nlp, data)
            for lang in langs.split(","):
                found |= score_retrieval(nlp, data, lang)
            results[path.name] = {
                name: with_interval(values, compute) for name, (values, compute) in found.items()
            }
            scores = [f"{each['score']:.1f}" for each in results[path.name].values()]
            msg.info(f"{path.name}: {', '.join(scores)}")
        teacher = results[pipelines[0].name]
        rows = []
        for name, own in results.items():
            cells = [cell(each, teacher[key]) for key, each in own.items()]
            rows.append([name, *cells])
        table = Table("Vectors of texts", ["pipeline", *teacher], rows)
        note = (
            "Scores in %, with 95 % bootstrap intervals over pairs or queries, and in brackets the "
            f"share of the first pipeline's. kNN: {NEIGHBOURS} neighbours."
        )
        report_results([table, note], {"results": results}, output=output, stem=stem, date=date)


if __name__ == "__main__":
    typer.run(main)
