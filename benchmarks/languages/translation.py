"""Measure what an English teacher of sentence vectors teaches on translations.

    python -m benchmarks.languages.translation xquad work --teacher all-MiniLM-L6-v2 \\
        --student multilingual-encoder --output benchmarks/languages/results

XQuAD has the same questions and paragraphs in many languages. The student is a pipeline with the
lowest layers of a multilingual encoder. It learns the teacher's `doc.vector` of the English texts
from the texts themselves and their translations, by `spacy distil pipeline` with a stage `vectors`.
One article in four is left for the test.

The score is retrieval of questions by the cosine of `doc.vector`: the share of questions whose own
translation is nearest to them, of all test questions. In the columns "to teacher", the candidates
are the teacher's vectors of the English questions, which other pipelines can search only if their
vectors have the same meaning. The last column is the mean cosine of German and Spanish questions
to these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from numpy.typing import NDArray
from spacy.language import Language

from benchmarks.common.options import OptionalOutput, Seed
from benchmarks.common.results import report_results, timestamp
from spacy_distil import distil_pipeline
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.tables import Table

TEST_EVERY = 4  # articles
Vectors = NDArray[np.float64]


def main(
    data: Annotated[Path, typer.Argument(help="Directory of xquad.en.json and others")],
    work: Annotated[Path, typer.Argument(help="Directory for texts and pipelines")],
    teacher: Annotated[Path, typer.Option(help="English encoder of sentences", exists=True)],
    student: Annotated[Path, typer.Option(help="Multilingual encoder", exists=True)],
    languages: Annotated[str, typer.Option(help="Beside English, separated by commas")] = "de,es",
    paragraphs: Annotated[
        bool, typer.Option(help="Learn paragraphs, too, or questions alone")
    ] = True,
    layers: Annotated[int, typer.Option(help="Lowest layers that the student has", min=1)] = 6,
    steps: Annotated[int, typer.Option(help="Steps of the student", min=1)] = 1000,
    words: Annotated[int, typer.Option(help="Words in a step", min=1)] = 600,
    rate: Annotated[float, typer.Option(help="Learning rate of the student")] = 2e-4,
    seed: Seed = 0,
    output: OptionalOutput = None,
) -> None:
    """Distil the student, print the table and save it."""
    with friendly_errors():
        date = timestamp()
        others = languages.split(",")
        tests = write_texts(data, work, others, paragraphs)
        english = make_pipeline("en", teacher)
        full, before = make_pipeline("xx", student), make_pipeline("xx", student, layer=layers)
        config = student_config(before, work, others, steps, words, rate, seed)
        path = distil_pipeline(english, config, work / "student", force=True).path
        sides = {
            "English teacher": english,
            "multilingual encoder": full,
            f"its lowest {layers} layers": before,
            "the same, taught": spacy.load(path),
        }
        targets = vectors_of(english, tests["en"])
        rows = {name: score(nlp, tests, others, targets) for name, nlp in sides.items()}
        columns = list(next(iter(rows.values())))
        table = Table(
            "Retrieval of questions by their translations",
            ["pipeline", *columns],
            [[name, *(f"{100 * own[each]:.1f}" for each in columns)] for name, own in rows.items()],
        )
        note = (
            f"{len(tests['en']):,} test questions. {steps:,} steps of {words:,} words, seed {seed}."
        )
        report_results([table, note], {"rows": rows}, output=output, stem="translation", date=date)


def read_xquad(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Read questions and paragraphs of the training articles, and questions of the test articles.

    RETURNS (questions, paragraphs, test questions): in the same order in all languages.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist. Expected the data of XQuAD.")
    questions: list[str] = []
    paragraphs: list[str] = []
    test: list[str] = []
    for i, article in enumerate(json.loads(path.read_text(encoding="utf8"))["data"]):
        is_test = i % TEST_EVERY == TEST_EVERY - 1
        for paragraph in article["paragraphs"]:
            asked = [each["question"] for each in paragraph["qas"]]
            (test if is_test else questions).extend(asked)
            if not is_test:
                paragraphs.append(paragraph["context"])
    return questions, paragraphs, test


def write_texts(
    data: Path, work: Path, others: list[str], with_paragraphs: bool
) -> dict[str, list[str]]:
    """Write a file of training texts for each language. RETURNS: test questions by language."""
    work.mkdir(parents=True, exist_ok=True)
    tests = {}
    originals: list[str] = []
    for lang in ("en", *others):
        questions, paragraphs, tests[lang] = read_xquad(data / f"xquad.{lang}.json")
        texts = questions + (paragraphs if with_paragraphs else [])
        originals = originals or texts
        lines = [
            json.dumps({"text": text, **({"original": original} if lang != "en" else {})})
            for text, original in zip(texts, originals, strict=True)
        ]
        (work / f"{lang}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")
    return tests


def make_pipeline(lang: str, encoder: Path, layer: int | None = None) -> Language:
    """Make a pipeline of an encoder alone, whose `doc.vector` is the mean of its tokens."""
    nlp = spacy.blank(lang)
    model = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(encoder),
        "layer": layer,
        "window": 192,
        "overlap": 16,
    }
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": model})
    nlp.initialize()
    return nlp


def student_config(
    nlp: Language,
    work: Path,
    others: list[str],
    steps: int,
    words: int,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """Write the config of a student that learns vectors alone."""
    config: dict[str, Any] = nlp.config.copy()
    paths = {lang: str(work / f"{lang}.jsonl") for lang in ("en", *others)}
    config["corpora"]["text"] = {"@readers": "spacy-distil.Texts.v1", "path": paths}
    config["components"]["transformer"]["model"] |= {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "learn_rate_scale": 1.0,
    }
    config["training"] |= {
        "seed": seed,
        "max_steps": steps,
        "eval_frequency": max(1, steps // 3),
        "patience": 0,
        "score_weights": {},
        "batcher": {
            "@batchers": "spacy.batch_by_words.v1",
            "size": words,
            "tolerance": 0.2,
            "discard_oversize": False,
        },
        "optimizer": {
            "@optimizers": "Adam.v1",
            "learn_rate": {
                "@schedules": "warmup_linear.v1",
                "warmup_steps": steps // 10,
                "total_steps": steps,
                "initial_rate": rate,
            },
        },
    }
    config["distillation"] = {
        "corpus": "corpora.text",
        "student": {"start": "config"},
        "stages": {"vectors": {"share": 1.0}, "soft": {"share": 0.0}},
    }
    return config


def vectors_of(nlp: Language, texts: list[str]) -> Vectors:
    """Return the `doc.vector` of each text, with the length 1."""
    vectors: Any = np.stack([np.asarray(doc.vector, dtype="float64") for doc in nlp.pipe(texts)])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def score(
    nlp: Language, tests: dict[str, list[str]], others: list[str], targets: Vectors
) -> dict[str, float]:
    """Score a pipeline.

    targets: the teacher's vectors of the English questions, of the same width.
    """
    vectors = {lang: vectors_of(nlp, texts) for lang, texts in tests.items()}
    scores = {}
    for lang in others:
        for one, other in (("en", lang), (lang, "en")):
            scores[f"{one} to {other}"] = accuracy(vectors[one], vectors[other])
        scores[f"{lang} to teacher"] = accuracy(vectors[lang], targets)
    cosines = [(vectors[lang] * targets).sum(axis=1).mean() for lang in others]
    scores["cosine x 100"] = float(np.mean(cosines))
    return scores


def accuracy(queries: Vectors, candidates: Vectors) -> float:
    """Return the share of queries whose nearest candidate is the one of the same number."""
    nearest = (queries @ candidates.T).argmax(axis=1)
    return float((nearest == np.arange(len(queries))).mean())


if __name__ == "__main__":
    typer.run(main)
