"""Running the teacher's pipes over documents: slowly if it is paid, again if it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import pydantic
from spacy.language import Language
from spacy.tokens import Doc
from wasabi import msg

from spacy_distil.distillation.pipeline.labels import is_encoder, kind_of
from spacy_distil.errors import DistilError, TeacherError
from spacy_distil.pipelines import one_line
from spacy_distil.runs.settings import Count, Section

# Seconds to wait before the first repetition. Each wait is twice the one before, up to the longest.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


class TeacherSettings(Section):
    """How the teacher runs over the documents: the settings of [distillation.teacher].

    batch_size: documents that it gets at once. None means as many as suit its memory, or one if
        there is a rate limit.
    rate_limit: documents per minute, None for any number.
    retries: how many times a document is tried again after an error of a pipe of no known kind.
    shard_tokens: tokens in a shard of a new cache, None for 50,000. A killed run loses one shard at
        most.
    """

    batch_size: Count | None = None
    rate_limit: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] | None = None
    retries: Annotated[int, pydantic.Field(ge=0)] = 0
    shard_tokens: Count | None = None


class TeacherCalls:
    """Runs pipes over docs as the settings say."""

    def __init__(self, settings: TeacherSettings) -> None:
        self.settings = settings
        self._next = 0.0  # when the rate limit allows the next document

    def batches(self, numbers: range) -> Iterator[range]:
        """Cut documents into batches, and wait before each as the rate limit demands."""
        settings = self.settings
        size = settings.batch_size or (1 if settings.rate_limit else max(1, len(numbers)))
        for start in range(0, len(numbers), size):
            batch = numbers[start : start + size]
            if settings.rate_limit:
                now = time.monotonic()
                time.sleep(max(0.0, self._next - now))
                self._next = max(now, self._next) + len(batch) * 60 / settings.rate_limit
            yield batch

    def annotate(self, name: str, pipe: Any, docs: list[Doc], numbers: range) -> list[Doc]:
        """Annotate docs with a pipe of the teacher.

        numbers: of the docs, for errors.
        Raises TeacherError for an error of a pipe of no known kind, after all retries. Other pipes
        are models of spaCy or ours, which fail for good: their errors stay as they are.
        """
        if kind_of(pipe) is not None or is_encoder(pipe):
            return annotate(pipe, docs)
        # A pipe that fails may leave some docs annotated.
        before = list(map(_copy, docs))
        try:
            annotated = annotate(pipe, docs)
        except DistilError:
            raise
        except Exception as error:  # of any code, and of any service behind it
            if len(docs) == 1:
                annotated = [self._retry(name, pipe, before[0], numbers[0], error)]
            else:  # find the document that fails
                annotated = [
                    each
                    for doc, i in zip(before, range(len(numbers)), strict=True)
                    for each in self.annotate(name, pipe, [doc], numbers[i : i + 1])
                ]
        _check_tokens(name, before, annotated)
        return annotated

    def _retry(self, name: str, pipe: Any, doc: Doc, number: int, error: Exception) -> Doc:
        """Try a document again that has failed."""
        wait = FIRST_WAIT
        for retry in range(1, self.settings.retries + 1):
            msg.warn(
                f"The teacher's {name!r} failed on {_quote(number, doc)}: {_reason(error)}. Retry "
                f"{retry} of {self.settings.retries} in {wait:.0f} seconds"
            )
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            try:
                (annotated,) = annotate(pipe, [_copy(doc)])
                return annotated
            except Exception as again:
                error = again
        raise TeacherError(
            f"The teacher's {name!r} failed on {_quote(number, doc)}, after "
            f"{self.settings.retries} retries: {_reason(error)}. Its answers so far "
            "are kept: remove the cause, or set more retries, and start again."
        ) from error


def annotate(pipe: Any, docs: list[Doc]) -> list[Doc]:
    """Annotate docs with a pipe, in a single batch."""
    if hasattr(pipe, "pipe"):
        return list(pipe.pipe(docs, batch_size=max(1, len(docs))))
    return [pipe(doc) for doc in docs]


def run_pipeline(
    nlp: Language, docs: list[Doc], numbers: range, calls: TeacherCalls
) -> Iterator[tuple[str, Any, list[Doc]]]:
    """Run all pipes over docs.

    RETURNS: yields name, pipe and the docs that it has annotated.
    """
    for name, pipe in nlp.pipeline:
        docs = calls.annotate(name, pipe, docs, numbers)
        yield name, pipe, docs


def _copy(doc: Doc) -> Doc:
    """Copy a doc, which keeps the user data: it may be large, or of a kind that has no copy."""
    data = doc.user_data
    doc.user_data = {}
    try:
        copy = doc.copy()
    finally:
        doc.user_data = data
    copy.user_data = {**data}
    return copy


def _check_tokens(name: str, before: list[Doc], after: list[Doc]) -> None:
    """Raise TeacherError if a pipe does not return the same docs, token by token."""
    if len(before) != len(after):
        raise TeacherError(
            f"The teacher's {name!r} returned {len(after)} documents for {len(before)}: expected "
            "one for each. Remove it from the teacher."
        )
    for old, new in zip(before, after, strict=True):
        if not isinstance(new, Doc):
            raise TeacherError(
                f"The teacher's {name!r} returned {new!r} for {old.text[:60]!r}: expected the "
                "document. Let it return that."
            )
        if [t.orth for t in old] != [t.orth for t in new]:
            raise TeacherError(
                f"The teacher's {name!r} changes the tokens of {old.text[:60]!r}, and the student "
                "has other ones. Remove it from the teacher, or let it set annotation alone."
            )


def _quote(number: int, doc: Doc) -> str:
    text = doc.text[:60] + (" ..." if len(doc.text) > 60 else "")
    return f"document {number} ({text!r})"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error)).rstrip('.')}"
