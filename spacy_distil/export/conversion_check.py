"""A converted pipeline against its original of spacy-transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy_transformers.data_classes import FullTransformerBatch, TransformerData
from spacy_transformers.layers import TransformerModel
from thinc import api
from thinc.api import Model, get_ops
from thinc.types import Ragged

from spacy_distil.component.shim import EncoderShim
from spacy_distil.encoding import encode_docs
from spacy_distil.engines.files import longest_window
from spacy_distil.errors import CorpusError
from spacy_distil.export.agreement import Agreement, Measure, measure_agreement
from spacy_distil.export.agreement import to_text as agreement_to_text
from spacy_distil.export.conversion_plan import Plan, encoders_of
from spacy_distil.export.trf import find_transformers
from spacy_distil.text.documents import read_documents

# Compared where the user has no documents: a token of many pieces, characters of several scripts,
# several sentences.
SENTENCES = (
    "Ann Lee flew from Rome to Oslo in the spring of 2021, and wrote about it.",
    "The committee's decision was unbelievably short-sighted; nobody had asked for it!",
    "Apple paid $1.2 billion for a start-up in Zürich, according to two people who know it.",
    "Is this good? Yes. It's the best that I have seen, and I would buy it again.",
    "Otorhinolaryngologists met in São Paulo (Brazil) and in Москва.",
    "no capitals here and no full stop either",
)


@dataclass(frozen=True)
class Corpus:
    """What the pipelines are compared on.

    source: where it comes from, for people to read.
    gold: as in `measure_agreement`.
    """

    source: str
    docs: list[Doc]
    gold: list[Example] | None


@dataclass(frozen=True)
class Comparison:
    """How far a converted pipeline agrees with its original.

    source: where the documents come from.
    same_windows: over the documents of which both encode exactly the same pieces; `None` where
        there is none.
    all_windows: over all documents; `None` where that is the same.
    n_left_out: documents that the original cannot process, or that are empty.
    """

    source: str
    same_windows: Agreement | None
    all_windows: Agreement | None
    n_left_out: int

    @property
    def lowest(self) -> Measure | None:
        """The measure of the smallest agreement where the windows are the same."""
        return None if self.same_windows is None else self.same_windows.lowest


def to_text(comparison: Comparison) -> str:
    """All tables, for the terminal."""
    same, every = comparison.same_windows, comparison.all_windows
    n_same = same.n_docs if same else 0
    n_docs = every.n_docs if every else n_same
    lines = [f"Both pipelines encode the same windows in {n_same:,} of {n_docs:,} documents."]
    if comparison.n_left_out:
        lines.append(
            f"Left out: {comparison.n_left_out:,} documents that are empty or that "
            "spacy-transformers cannot process."
        )
    for title, agreement in (("The same windows", same), ("All documents", every)):
        if agreement is not None:
            lines += ["", f"== {title} ==", "", agreement_to_text(agreement)]
    return "\n".join(lines)


def read(documents: Path | None, nlp: Language, *, limit: int) -> Corpus:
    """What to compare the pipelines on.

    documents: .spacy, .txt or .jsonl; `None` for SENTENCES.
    limit: the first N documents; 0 for all.
    """
    if documents is None:
        docs = [nlp.make_doc(sentence) for sentence in SENTENCES]
        return Corpus(f"{len(docs)} sentences of its own", docs, None)
    found = read_documents(documents, nlp, limit=limit)
    return Corpus(str(documents), found.docs, found.gold)


def compare(
    original: Language, candidate: Language, plan: Plan, corpus: Corpus, *, batch_size: int
) -> Comparison:
    """Compare predictions and token vectors of two pipelines.

    plan: how the one was made of the other.
    batch_size: documents at a time.
    """
    for name, pipe in find_transformers(original).items():
        pipe.set_extra_annotations = partial(_write_tensors, plan.shared[name])
    usable, same = [], []
    for i, doc in enumerate(corpus.docs):
        pairs = list(_windows(original, candidate, plan, doc)) if len(doc) else []
        if len(doc) and all(window.usable for window in pairs):
            usable.append(i)
            if all(window.same for window in pairs):
                same.append(i)
    if not usable:
        raise CorpusError(
            f"The original pipeline can process none of the documents of {corpus.source}."
        )

    def measure(chosen: Sequence[int]) -> Agreement:
        return measure_agreement(
            original,
            candidate,
            [corpus.docs[i] for i in chosen],
            gold=None if corpus.gold is None else [corpus.gold[i] for i in chosen],
            batch_size=batch_size,
            alone=False,
            rounds=0,
        )

    return Comparison(
        source=corpus.source,
        same_windows=measure(same) if same else None,
        all_windows=measure(usable) if len(same) < len(usable) else None,
        n_left_out=len(corpus.docs) - len(usable),
    )


@dataclass(frozen=True)
class _Windows:
    """What two encoders make of one document.

    same: whether they encode the same windows.
    usable: whether the original bears the document at all.
    """

    same: bool
    usable: bool


def _windows(original: Language, candidate: Language, plan: Plan, doc: Doc) -> Iterator[_Windows]:
    """For each encoder of the original and the one that was made of it."""
    doc = Doc(
        original.vocab,
        words=[token.text for token in doc],
        spaces=[bool(token.whitespace_) for token in doc],
    )
    for name, pipe in original.pipeline:
        theirs = encoders_of(pipe)
        for model, shim in zip(theirs, _shims(candidate.get_pipe(name)), strict=False):
            poolings = {
                place.reader.pooling
                for place in plan.places
                if (place.transformer or place.pipe) == name
            }
            yield _compare_windows(model, shim, doc, poolings)
        if not theirs and not any(place.pipe == name for place in plan.places):
            # It may set the sentences that span getters read.
            doc = pipe(doc)


def _compare_windows(
    model: TransformerModel, shim: EncoderShim, doc: Doc, poolings: set[str]
) -> _Windows:
    """poolings: of the pipes that read this encoder."""
    tokenizer = shim.loaded.tokenizer
    encoded = encode_docs(
        [doc],
        tokenizer,
        window=shim.loaded.window,
        overlap=shim.settings.overlap,
        pooling=shim.settings.pooling,
    )
    ours = [[*tokenizer.prefix, *ids.tolist(), *tokenizer.suffix] for ids in encoded.windows]
    spans = model.attrs["get_spans"]([doc])[0]
    theirs = [model.tokenizer(span.text)["input_ids"] for span in spans]
    cut = [ids[: model.tokenizer.model_max_length] for ids in theirs]
    longest = longest_window(model.transformer.config.to_dict())
    # Of a token without a piece, thinc's reductions know a mean and a sum only.
    has_bare_token = bool((encoded.pooling.lengths == 0).any())
    return _Windows(
        same=ours == [ids for ids in cut if len(ids) > tokenizer.n_special],
        usable=all(len(ids) <= longest for ids in cut)
        and not (has_bare_token and poolings - {"mean", "sum"}),
    )


def _shims(pipe: Any) -> list[EncoderShim]:
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model):
        return []
    return [shim for node in model.walk() for shim in node.shims if isinstance(shim, EncoderShim)]


def _write_tensors(pooling: str, docs: list[Doc], batch: FullTransformerBatch) -> None:
    """Token vectors of spacy-transformers as `doc.tensor`, to compare them with ours."""
    reduce: Model[Ragged, Any] = getattr(api, f"reduce_{pooling}")()
    for doc, data in zip(docs, batch.doc_data, strict=True):
        doc.tensor = _pool(data, reduce, len(doc))


def _pool(data: TransformerData, reduce: Model[Ragged, Any], n_tokens: int) -> Any:
    if not n_tokens:
        return np.zeros((0, 0), dtype="f")
    hidden = data.model_output.last_hidden_state
    hidden = hidden.reshape(-1, hidden.shape[-1])
    tensor = get_ops("cpu").alloc2f(n_tokens, hidden.shape[1])
    has_piece = data.align.lengths > 0
    if has_piece.any():
        rows = Ragged(hidden[data.align.dataXd], data.align.lengths[has_piece])
        tensor[has_piece] = reduce.predict(rows)
    return tensor
