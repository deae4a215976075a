"""SQuAD's format, and its scores: exact match and F1 (Rajpurkar et al. 2016 and 2018).

The scores are computed as the official scripts of SQuAD 1.1 and 2.0 do.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.training import Example

from spacy_distil.errors import CorpusError
from spacy_distil.pairs.questions import Answers, add_extensions, set_answers, set_questions

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def Squad(
    path: str | Path | None,
    questions: str = "questions",
    answers: str = "answers",
    limit: int = 0,
) -> Callable[[Language], Iterator[Example]]:
    """Read questions with answers for `distil_qa`, from a file in the format of SQuAD 1.1 or 2.0.

    Each question becomes an Example with its paragraph.

    path: .json file.
    questions, answers: the extensions, as in the settings of the pipe.
    limit: only the first N questions; 0 for all.
    """
    add_extensions(questions, answers)

    def read(nlp: Language) -> Iterator[Example]:
        if path is None:
            raise CorpusError("There are no questions: set the path of spacy-distil.Squad.v1.")
        for number, (context, question, found) in enumerate(read_squad(path)):
            if limit and number >= limit:
                return
            predicted, reference = nlp.make_doc(context), nlp.make_doc(context)
            for doc in (predicted, reference):
                set_questions(doc, questions, [question])
            set_answers(reference, answers, [found])
            yield Example(predicted, reference)

    return read


def read_squad(path: str | Path) -> Iterator[tuple[str, str, Answers]]:
    """Read paragraph, question and answers of each question of a file."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"The questions in {path} cannot be read: {error}") from error
    try:
        for article in data["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for question in paragraph["qas"]:
                    yield context, question["question"], _read_answers(path, context, question)
    except (KeyError, TypeError) as error:
        raise CorpusError(
            f'{path} is not in the format of SQuAD, {{"data": [{{"paragraphs": [{{"context": '
            f'"...", "qas": [...]}}]}}]}}: {error!r}.'
        ) from error


def _read_answers(path: str | Path, context: str, question: dict[str, Any]) -> Answers:
    if question.get("is_impossible"):
        return []
    found = []
    for answer in question["answers"]:
        text, start = answer["text"], answer["answer_start"]
        if context[start : start + len(text)] != text:
            raise CorpusError(
                f"{path}: the answer {text!r} to {question['question']!r} is not at character "
                f"{start} of its paragraph, where {context[start : start + len(text)]!r} is."
            )
        found.append({"text": text, "start": start, "end": start + len(text)})
    return found


def normalize(answer: str) -> str:
    """Write an answer in lower case, without punctuation, articles and further spaces."""
    kept = "".join(each for each in answer.lower() if each not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def score_answer(predicted: str, truth: Sequence[str]) -> tuple[float, float]:
    """Score an answer against the best of the true ones.

    predicted: "" for no answer.
    truth: empty if there is no answer.
    RETURNS (exact match, F1): from 0 to 1.
    """
    own = normalize(predicted)
    others = [normalize(each) for each in truth]
    # As in SQuAD 2.0: a true answer without words, such as "the", does not count.
    others = [each for each in others if each] or [""]
    return max(float(own == each) for each in others), max(_f1(own, each) for each in others)


def _f1(own: str, other: str) -> float:
    words, others = own.split(), other.split()
    if not words or not others:
        return float(words == others)
    n_same = sum((Counter(words) & Counter(others)).values())
    return 2 * n_same / (len(words) + len(others))
