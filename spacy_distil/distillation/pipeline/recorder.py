"""Running the teacher over documents, and recording what the student learns from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from spacy.language import Language

from spacy_distil.distillation.pipeline.calls import TeacherCalls, TeacherSettings
from spacy_distil.distillation.pipeline.corpus import TransferSet, original_of
from spacy_distil.distillation.pipeline.decisions import Decisions
from spacy_distil.distillation.pipeline.heads.base import Array, Field, Head
from spacy_distil.distillation.pipeline.hidden import HiddenStates
from spacy_distil.distillation.pipeline.vectors import DocVectors
from spacy_distil.text.docs import same_tokens

# Names of the hidden states and of the vectors of docs among the records. No pipe can have them.
HIDDEN, VECTORS = "[hidden]", "[vectors]"


class TeacherRecorder:
    """Records the teacher's predictions for the documents of a run.

    teacher: the teacher's pipeline.
    transfer_set: the documents. The teacher runs over their tokens.
    heads: the heads that record, by the student's names of the pipes.
    hidden: records hidden states. None for no hidden states.
    vectors: records vectors of docs. None for no vectors.
    calls: runs the pipes. None for a teacher that is neither slow nor paid.
    decisions: the docs after the pipes of no known kind. These do not run again.
    """

    def __init__(
        self,
        teacher: Language,
        transfer_set: TransferSet,
        heads: Mapping[str, Head],
        hidden: HiddenStates | None,
        calls: TeacherCalls | None = None,
        decisions: Decisions | None = None,
        vectors: DocVectors | None = None,
    ) -> None:
        self.teacher = teacher
        self.hidden = hidden
        self.vectors = vectors
        self.fields: dict[str, Mapping[str, Field]] = {n: h.fields for n, h in heads.items()}
        self.sources = {name: head.source for name, head in heads.items()}
        if hidden is not None:
            self.fields[HIDDEN], self.sources[HIDDEN] = hidden.fields, hidden.source
        if vectors is not None:
            self.fields[VECTORS], self.sources[VECTORS] = vectors.fields, vectors.source
        self._examples = transfer_set.all
        self._decisions = decisions
        self._calls = TeacherCalls(TeacherSettings()) if calls is None else calls
        if decisions is not None:  # the rate limit was kept when they were recorded
            settings = self._calls.settings.model_copy(update={"rate_limit": None})
            self._calls = TeacherCalls(settings)
        self._heads_of: dict[str, dict[str, Head]] = defaultdict(dict)  # by pipe of the teacher
        for name, head in heads.items():
            self._heads_of[head.settings.source(name)][name] = head
        # Pipes run up to the last one whose model teaches, -1 for none.
        self._last = max(
            (
                place
                for place, (source, pipe) in enumerate(teacher.pipeline)
                if (hidden is not None and pipe is hidden.teacher)
                or not all(h.reads_annotation for h in self._heads_of[source].values())
            ),
            default=-1,
        )

    def record(self, numbers: range) -> dict[str, dict[str, list[Array]]]:
        """Record documents.

        numbers: of the documents in the transfer set.
        RETURNS: by head and field, an array per document.
        """
        records: dict[str, dict[str, list[Array]]] = {}
        for batch in self._calls.batches(numbers):
            for name, fields in self._record(batch).items():
                for field, arrays in fields.items():
                    records.setdefault(name, {}).setdefault(field, []).extend(arrays)
        return records

    def _record(self, numbers: range) -> dict[str, dict[str, list[Array]]]:
        """Record a batch, which the teacher gets at once."""
        records = {}
        docs = []
        if self._last >= 0 or self.vectors is not None:
            vocab = self.teacher.vocab
            docs = [same_tokens(self._examples[number].predicted, vocab) for number in numbers]
        for place, (source, pipe) in enumerate(self.teacher.pipeline):
            heads = self._heads_of[source]
            for name, head in heads.items():
                if not head.reads_annotation:
                    records[name] = head.record(docs)
            if self._decisions is not None and source in self._decisions.sources:
                if place < self._last:
                    docs = self._decisions.apply(source, docs, numbers)
                else:
                    docs = self._decisions.docs(source, numbers, self.teacher.vocab)
            elif place <= self._last:
                docs = self._calls.annotate(source, pipe, docs, numbers)
            for name, head in heads.items():
                if head.reads_annotation:
                    records[name] = head.record(docs)
            if self.hidden is not None and pipe is self.hidden.teacher:
                records[HIDDEN] = self.hidden.record(docs)
            if self.vectors is not None and pipe is self.vectors.teacher:
                originals = [original_of(self._examples[number].predicted) for number in numbers]
                records[VECTORS] = self.vectors.record(docs, originals)
        return records
