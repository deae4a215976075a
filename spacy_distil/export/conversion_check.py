"""The agreement of a converted pipeline with its original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Model

from spacy_distil.component.shim import EncoderShim
from spacy_distil.encoding import encode_docs
from spacy_distil.errors import CorpusError
from spacy_distil.export import agreement_table
from spacy_distil.export.agreement import Agreement, PipeMeasure, measure_agreement, run_pipe
from spacy_distil.export.conversion_plan import ConversionPlan
from spacy_distil.export.sources.source import Source
from spacy_distil.text.docs import same_tokens
from spacy_distil.text.documents import read_documents
from spacy_distil.text.plain_text import TxtDocuments

# The default documents: tokens of many pieces, characters of several scripts, several sentences.
SENTENCES = (
    "Ann Lee flew from Rome to Oslo in the spring of 2021, and wrote about it.",
    "The committee's decision was unbelievably short-sighted; nobody had asked for it!",
    "Apple paid $1.2 billion for a start-up in Zürich, according to two people who know it.",
    "Is this good? Yes. It's the best that I have seen, and I would buy it again.",
    "Otorhinolaryngologists met in São Paulo (Brazil) and in Москва.",
    "no capitals here and no full stop either",
)


@dataclass(frozen=True)
class CheckDocuments:
    """Documents to compare the pipelines on.

    source: where they come from, for messages.
    gold: see `measure_agreement`.
    """

    source: str
    docs: list[Doc]
    gold: list[Example] | None


@dataclass(frozen=True)
class ConversionCheck:
    """Agreement of a converted pipeline with its original.

    source: where the documents come from.
    same_windows: agreement over the documents of which both encode exactly the same pieces; `None`
        if there are no such documents.
    all_windows: agreement over all documents; `None` if those are the same documents.
    n_left_out: number of documents that are empty or that the original cannot process.
    """

    source: str
    same_windows: Agreement | None
    all_windows: Agreement | None
    n_left_out: int

    @property
    def lowest(self) -> PipeMeasure | None:
        """The measure with the lowest agreement over documents with the same windows."""
        return None if self.same_windows is None else self.same_windows.lowest


def to_text(check: ConversionCheck) -> str:
    """Write all tables for the terminal."""
    same_windows, all_windows = check.same_windows, check.all_windows
    n_same = same_windows.n_docs if same_windows else 0
    n_docs = all_windows.n_docs if all_windows else n_same
    lines = [f"Both pipelines encode the same windows in {n_same:,} of {n_docs:,} documents."]
    if check.n_left_out:
        lines.append(
            f"Left out: {check.n_left_out:,} documents that are empty or that "
            "the original cannot process."
        )
    for title, agreement in (("The same windows", same_windows), ("All documents", all_windows)):
        if agreement is not None:
            lines += ["", f"== {title} ==", "", agreement_table.to_text(agreement)]
    return "\n".join(lines)


def read_check_documents(
    texts: Path | None,
    nlp: Language,
    *,
    limit: int,
    txt_documents: TxtDocuments,
    log: Callable[[str], Any],
) -> CheckDocuments:
    """Read the documents to compare the pipelines on.

    texts: .spacy, .txt or .jsonl; `None` for SENTENCES.
    limit: only the first N documents; 0 for all.
    txt_documents, log: see `read_documents`.
    """
    if texts is None:
        docs = [nlp.make_doc(sentence) for sentence in SENTENCES]
        return CheckDocuments(f"{len(docs)} sentences of its own", docs, None)
    documents = read_documents(texts, nlp, limit=limit, txt_documents=txt_documents, log=log)
    return CheckDocuments(str(texts), documents.docs, documents.gold)


def check_conversion(
    original: Language,
    candidate: Language,
    plan: ConversionPlan,
    corpus: CheckDocuments,
    *,
    trf_data: bool,
    batch_size: int,
) -> ConversionCheck:
    """Compare predictions and token vectors of the two pipelines.

    plan: the plan of the conversion.
    trf_data: whether the candidate sets `doc._.trf_data`.
    batch_size: documents per batch.
    """
    for name, pipe in plan.source.find_transformers(original).items():
        plan.source.write_tensors(pipe, plan.shared[name])
    usable, same = [], []
    for i, doc in enumerate(corpus.docs):
        encoders = list(_compare_encoders(original, candidate, plan, doc)) if len(doc) else []
        if len(doc) and all(windows.usable for windows in encoders):
            usable.append(i)
            if all(windows.same for windows in encoders):
                same.append(i)
    if not usable:
        raise CorpusError(
            f"The original pipeline can process none of the documents of {corpus.source}."
        )
    advice = ""
    if plan.shared and not trf_data:
        advice = "; if it reads doc._.trf_data, which the original sets, convert with --trf-data"

    def measure(chosen: Sequence[int]) -> Agreement:
        return measure_agreement(
            original,
            candidate,
            [corpus.docs[i] for i in chosen],
            gold=None if corpus.gold is None else [corpus.gold[i] for i in chosen],
            batch_size=batch_size,
            alone=False,
            rounds=0,
            advice=advice,
        )

    return ConversionCheck(
        source=corpus.source,
        same_windows=measure(same) if same else None,
        all_windows=measure(usable) if len(same) < len(usable) else None,
        n_left_out=len(corpus.docs) - len(usable),
    )


@dataclass(frozen=True)
class _Windows:
    """The windows of one document in two encoders.

    same: whether the encoders have the same windows.
    usable: whether the original can process the document.
    """

    same: bool
    usable: bool


def _compare_encoders(
    original: Language, candidate: Language, plan: ConversionPlan, doc: Doc
) -> Iterator[_Windows]:
    """Compare the windows of each encoder of the original with the windows of its conversion."""
    doc = same_tokens(doc, original.vocab)
    pipes = [(name, pipe, _encoders(pipe, plan.source)) for name, pipe in original.pipeline]
    while pipes and not pipes[-1][2]:
        pipes.pop()
    for name, pipe, encoders in pipes:
        for model, shim in zip(encoders, _shims(candidate.get_pipe(name)), strict=False):
            poolings = {
                replacement.reader.pooling
                for replacement in plan.replacements
                if (replacement.transformer or replacement.pipe) == name
            }
            windows = _compare_windows(plan.source, model, shim, doc, poolings)
            yield windows
            if not windows.usable:
                return
        if name != pipes[-1][0]:
            # It may set the sentences that the span getters of later encoders read.
            doc = run_pipe(name, pipe, doc, "original")


def _compare_windows(
    source: Source, encoder: Model, shim: EncoderShim, doc: Doc, poolings: set[str]
) -> _Windows:
    """Compare the windows of an encoder with the windows of its conversion.

    poolings: the poolings of the pipes that read the encoder.
    """
    tokenizer = shim.loaded.tokenizer
    encoded = encode_docs(
        [doc],
        tokenizer,
        window=shim.loaded.window,
        overlap=shim.settings.overlap,
        pooling=shim.settings.pooling,
        pieces_from=shim.settings.pieces_from,
    )
    converted = [[*tokenizer.prefix, *ids.tolist(), *tokenizer.suffix] for ids in encoded.windows]
    windows = source.windows_of(encoder, doc)
    # thinc cannot reduce a token without pieces to its first, last or largest piece.
    has_bare_token = bool((encoded.pooling.lengths == 0).any())
    if windows is None or (has_bare_token and poolings - {"mean", "sum"}):
        return _Windows(same=False, usable=False)
    return _Windows(
        same=converted == [ids for ids in windows if len(ids) > tokenizer.n_special], usable=True
    )


def _encoders(pipe: Any, source: Source) -> list[Model]:
    """Find the encoders that a pipe of the original runs itself."""
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model):
        return []
    return [node for node in model.walk() if source.is_encoder(node)]


def _shims(pipe: Any) -> list[EncoderShim]:
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model):
        return []
    return [shim for node in model.walk() for shim in node.shims if isinstance(shim, EncoderShim)]
