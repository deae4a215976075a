"""Running the teacher over documents, and recording what the student learns from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from spacy.language import Language
from spacy.tokens import Doc

from spacy_distil.distillation.pipeline.corpus import TransferSet
from spacy_distil.distillation.pipeline.heads.base import Array, Field, Head
from spacy_distil.distillation.pipeline.hidden import HiddenStates
from spacy_distil.text.docs import same_tokens

# Name of the hidden states among the records. No pipe can have it.
HIDDEN = "[hidden]"


class TeacherRecorder:
    """Records the teacher's predictions for the documents of a run.

    teacher: the teacher's pipeline.
    transfer_set: the documents. The teacher runs over their tokens.
    heads: the heads that record, by the student's names of the pipes.
    hidden: records hidden states. None for no hidden states.
    """

    def __init__(
        self,
        teacher: Language,
        transfer_set: TransferSet,
        heads: Mapping[str, Head],
        hidden: HiddenStates | None,
    ) -> None:
        self.teacher = teacher
        self.hidden = hidden
        self.fields: dict[str, Mapping[str, Field]] = {n: h.fields for n, h in heads.items()}
        self.sources = {name: head.source for name, head in heads.items()}
        if hidden is not None:
            self.fields[HIDDEN], self.sources[HIDDEN] = hidden.fields, hidden.source
        self._examples = transfer_set.all
        self._heads_of: dict[str, dict[str, Head]] = defaultdict(dict)  # by pipe of the teacher
        for name, head in heads.items():
            self._heads_of[head.settings.source(name)][name] = head

    def record(self, numbers: range) -> dict[str, dict[str, list[Array]]]:
        """Record documents.

        numbers: of the documents in the transfer set.
        RETURNS: by head and field, an array per document.
        """
        vocab = self.teacher.vocab
        docs = [same_tokens(self._examples[number].predicted, vocab) for number in numbers]
        records = {}
        for source, pipe in self.teacher.pipeline:
            for name, head in self._heads_of.get(source, {}).items():
                records[name] = head.record(docs)
            docs = annotate(pipe, docs)
            if self.hidden is not None and pipe is self.hidden.teacher:
                records[HIDDEN] = self.hidden.record(docs)
        return records


def annotate(pipe: Any, docs: list[Doc]) -> list[Doc]:
    """Annotate docs with a pipe, in a single batch."""
    if hasattr(pipe, "pipe"):
        return list(pipe.pipe(docs, batch_size=max(1, len(docs))))
    return [pipe(doc) for doc in docs]
