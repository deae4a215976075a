"""Questions about a doc, and their answers, in extensions of the doc."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from spacy.tokens import Doc

from spacy_distil.errors import ConfigError
from spacy_distil.pairs.other import check_name
from spacy_distil.text.docs import FURTHER_TEXT

# Answers to a question, the best first: each with "text", and the characters "start" and "end" of
# the doc; those that a pipe has found have a "probability", too.
Answers = list[dict[str, Any]]
# In `doc.user_data`, before the name of the extension.
ANSWERS = "spacy_distil.answers."


def add_extensions(questions: str, answers: str) -> None:
    """Add the extensions of questions, a list of strings, and of their answers, a list for each.

    Raises ConfigError if there are other extensions of these names.
    """
    for name, get, set_ in (
        (questions, questions_of, set_questions),
        (answers, answers_of, set_answers),
    ):
        check_name(name, get)
        if not Doc.has_extension(name):
            Doc.set_extension(
                name, getter=partial(get, name=name), setter=partial(_set, set_, name)
            )


def _set(setter: Any, name: str, doc: Doc, value: Any) -> None:
    setter(doc, name, value)


def questions_of(doc: Doc, name: str) -> list[str]:
    """Return the questions about a doc."""
    return list(doc.user_data.get(FURTHER_TEXT + name, ()))


def set_questions(doc: Doc, name: str, questions: Sequence[str] | None) -> None:
    """Set the questions about a doc; None for none."""
    given: Any = [] if questions is None else questions
    is_list = isinstance(given, Iterable) and not isinstance(given, str)
    found = list(given) if is_list else []
    if not is_list or not all(isinstance(each, str) for each in found):
        raise ConfigError(f"doc._.{name} = {given!r:.60}: expected a list of strings.")
    if found:
        doc.user_data[FURTHER_TEXT + name] = found
    else:
        doc.user_data.pop(FURTHER_TEXT + name, None)


def answers_of(doc: Doc, name: str) -> list[Answers] | None:
    """Return the answers to each question, or None if they are not known."""
    answers = doc.user_data.get(ANSWERS + name)
    # Bytes make tuples of lists.
    return None if answers is None else [list(each) for each in answers]


def set_answers(doc: Doc, name: str, answers: Sequence[Answers] | None) -> None:
    """Set the answers to each question; an empty list for no answer, None if they are not known."""
    if answers is None:
        doc.user_data.pop(ANSWERS + name, None)
        return
    found: list[Answers] = []
    try:
        for own in answers:
            found.append([])
            for answer in own:
                start, text = answer["start"], answer["text"]
                end = answer.get("end", start + len(text))
                if not 0 <= start < end <= len(doc.text) or doc.text[start:end] != text:
                    raise ValueError
                found[-1].append({**answer, "end": end})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"doc._.{name} = {answers!r:.80}: expected a list for each question, of answers such "
            'as {"text": "Rome", "start": 12}, where the doc has this text at its character 12.'
        ) from error
    doc.user_data[ANSWERS + name] = found
