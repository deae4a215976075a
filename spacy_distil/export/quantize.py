"""A trained pipeline into one that runs on ONNX Runtime, in int8 or float32, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import spacy
import srsly
from spacy.language import Language
from thinc.api import Config

from spacy_distil.component.nlp_config import set_requirement
from spacy_distil.cpu import cpu_model, has_vnni
from spacy_distil.encoding import PieceTokenizer
from spacy_distil.engines.files import TOKENIZER
from spacy_distil.errors import ConfigError, require
from spacy_distil.export.agreement import Agreement, Measure, measure_agreement
from spacy_distil.pipelines import load_pipeline
from spacy_distil.runs.files import atomic_directory, check_output
from spacy_distil.text.documents import Documents, example_documents, read_documents

if TYPE_CHECKING:
    from spacy_distil.export.encoders import SourceEncoder
    from spacy_distil.export.graph import Precision
    from spacy_distil.export.vocabulary import PruningLoss

PrecisionName = Literal["int8", "fp32"]
PRECISIONS: tuple[str, ...] = get_args(PrecisionName)
ARCHITECTURE = "spacy-distil.DistilTransformer.v1"
# Documents that layers are tried on, one by one.
TRIAL_DOCS = 64


@dataclass(frozen=True)
class Pruning:
    """A vocabulary before and after, in pieces, and what that does to the documents' words."""

    n_before: int
    n_after: int
    loss: PruningLoss


@dataclass(frozen=True)
class Quantization:
    """What was done to a pipeline.

    precision: "int8" or "fp32".
    reduced_range: whether int8 weights use 7 bits.
    cpu: what it was checked on.
    vnni: whether that CPU adds up int8 products without saturating; `None` where it is not known.
    fp32_layers, sensitivity: see `spacy_distil.export.fallback.Int8Plan`.
    pruning: of the vocabulary; `None` without.
    documents: where they came from.
    agreement: of the result with the original, on them.
    """

    precision: str
    reduced_range: bool
    cpu: str
    vnni: bool | None
    fp32_layers: dict[str, list[int]]
    sensitivity: dict[str, list[float]]
    pruning: Pruning | None
    documents: str
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {**asdict(self), "agreement": self.agreement.to_dict()}


def quantize(
    pipeline: str | Path,
    output: Path,
    *,
    precision: PrecisionName = "int8",
    documents: Path | None = None,
    limit: int = 0,
    min_agreement: float = 0.95,
    max_fp32_layers: int | None = None,
    reduced_range: bool = False,
    prune_vocab: Path | None = None,
    vocab_size: int | None = None,
    batch_size: int = 64,
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
) -> Quantization:
    """Write a pipeline whose encoders run on ONNX Runtime, if it agrees with the original.

    pipeline: directory or package name of a pipeline with our encoders, on the torch engine.
    output: directory of the new one.
    precision: "int8", or "fp32" for the same numbers without torch.
    documents: what to check the result on: .spacy (scored too), .txt or .jsonl; `None` for a few
        sentences in the pipeline's language that come with spaCy.
    limit: only the first N documents; 0 for all.
    min_agreement: least agreement of each pipe's predictions with the original's, but for what a
        few documents would show by chance. Of a pipeline that predicts nothing, least mean cosine
        of its token vectors.
    max_fp32_layers: how many layers of each encoder may stay in float32 to reach it, the most
        sensitive first; `None` for half of them.
    reduced_range: keep int8 weights to 7 bits, for CPUs without VNNI.
    prune_vocab: texts or documents; pieces that are not in them are dropped from the vocabulary.
    vocab_size: with `prune_vocab`: how many pieces to keep; `None` for those that are seen.
    batch_size: documents at a time while the two are compared.
    force: replace a pipeline that `output` holds.
    log: gets a line for each step.

    Raises ConfigError, and writes nothing, where an encoder cannot be turned into a graph or the
    result agrees too little.
    """
    require("onnx", extra="export", purpose="Making an ONNX graph")
    from spacy_distil.export.fallback import Int8Plan
    from spacy_distil.export.graph import Precision

    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: expected one of {', '.join(PRECISIONS)}.")
    if not 0 <= min_agreement <= 1:
        raise ConfigError(f"min_agreement = {min_agreement}: expected 0 to 1.")
    if vocab_size is not None and prune_vocab is None:
        raise ConfigError(
            f"--vocab-size {vocab_size} is how many pieces to keep of those that --prune-vocab "
            "counts: name documents with that option too."
        )
    check_output(output, force=force, source=Path(pipeline))
    log(f"Loading {pipeline}")
    original = load_pipeline(str(pipeline))
    encoders = _read_encoders(str(pipeline), original)
    if documents is None:
        corpus = example_documents(original)
    else:
        corpus = read_documents(documents, original, limit=limit)
    pruning = None
    if prune_vocab is not None:
        log(f"Pruning the vocabulary to {prune_vocab}")
        texts = read_documents(prune_vocab, original).texts
        encoders, pruning = _prune(encoders, texts, corpus, vocab_size=vocab_size)
    plan = Int8Plan(encoders, reduced_range=reduced_range)
    with atomic_directory(output) as directory:
        while True:
            log(f"Making the graph: {plan if precision == 'int8' else precision}")
            precisions = {
                place: plan.precision(place) if precision == "int8" else Precision()
                for place in encoders
            }
            _write(str(pipeline), encoders, precisions, directory)
            candidate = spacy.load(directory)
            log(f"Comparing the predictions for {len(corpus.docs):,} documents")
            agreement = measure_agreement(
                original, candidate, corpus.docs, batch_size=batch_size, alone=False, rounds=0
            )
            refused = _refused(agreement, min_agreement)
            if refused is None or precision != "int8" or not plan.can_fall_back(max_fp32_layers):
                break
            log(f"{refused}; leaving one more layer in float32")
            plan.fall_back(corpus.docs[:TRIAL_DOCS], max_fp32_layers)
        if refused is not None:
            raise ConfigError(
                f"{refused}; at least {min_agreement:.2%} was asked for (--min-agreement). "
                f"Nothing was written.{_advice(precision, reduced_range)}"
            )
        agreement = measure_agreement(
            original,
            candidate,
            corpus.docs,
            gold=corpus.gold,
            batch_size=batch_size,
            paths=(Path(str(original.path)), directory),
            log=log,
        )
        if agreement.candidate_scores:
            # What stands there is the original's.
            _update_meta(directory, performance=agreement.candidate_scores)
    return Quantization(
        precision=precision,
        reduced_range=reduced_range,
        cpu=cpu_model(),
        vnni=has_vnni(),
        fp32_layers=plan.fp32_layers,
        sensitivity=plan.sensitivity,
        pruning=pruning,
        documents="spaCy's example sentences" if documents is None else str(documents),
        agreement=agreement,
    )


def _read_encoders(pipeline: str, nlp: Language) -> dict[str, SourceEncoder]:
    from spacy_distil.export.encoders import SourceEncoder, find_encoders

    shims = find_encoders(nlp)
    if not shims:
        raise ConfigError(
            f"{pipeline} has no encoder of ours (its pipes: {', '.join(nlp.pipe_names)}). "
            "'spacy distil convert' makes one of a spacy-transformers pipeline."
        )
    for place, shim in shims.items():
        if shim.settings.engine == "onnx":
            raise ConfigError(
                f"The encoder of {place!r} in {pipeline} runs on ONNX Runtime already. "
                "Start from the pipeline that it was made from."
            )
    return {place: SourceEncoder(shim) for place, shim in shims.items()}


def _prune(
    encoders: dict[str, SourceEncoder],
    texts: list[str],
    corpus: Documents,
    *,
    vocab_size: int | None,
) -> tuple[dict[str, SourceEncoder], Pruning]:
    """The same encoders with the pieces of `texts` alone."""
    from spacy_distil.export.encoders import SourceEncoder
    from spacy_distil.export.vocabulary import prune_encoder, prune_vocabulary, pruning_loss

    tokenizers = {encoder.files[TOKENIZER].decode() for encoder in encoders.values()}
    if len(tokenizers) > 1:
        raise ConfigError(
            "The pipeline's encoders have different vocabularies, which cannot be pruned in one "
            "go. Leave pruning out."
        )
    old = tokenizers.pop()
    pruned = prune_vocabulary(old, texts, keep=vocab_size)
    loss = pruning_loss(
        PieceTokenizer.from_str(old), PieceTokenizer.from_str(pruned.tokenizer_json), corpus.texts
    )
    return {
        place: SourceEncoder(encoder.shim, prune_encoder(encoder.files, pruned))
        for place, encoder in encoders.items()
    }, Pruning(pruned.n_before, pruned.n_kept, loss)


def _write(
    pipeline: str,
    encoders: dict[str, SourceEncoder],
    precisions: dict[str, Precision],
    directory: Path,
) -> None:
    """Write the pipeline with other encoders: its own files, weights and settings otherwise."""
    from spacy_distil.export.encoders import replace_encoders

    nlp = spacy.load(pipeline)
    replace_encoders(
        nlp, {place: encoder.to_shim(precisions[place]) for place, encoder in encoders.items()}
    )
    nlp.to_disk(directory)
    config = Config().from_disk(directory / "config.cfg", interpolate=False)
    for block in _blocks(config["components"]):
        block["engine"] = "onnx"
    config.to_disk(directory / "config.cfg")
    meta = srsly.read_json(directory / "meta.json")
    set_requirement(meta, "onnx")
    srsly.write_json(directory / "meta.json", meta)


def _update_meta(directory: Path, **entries: Any) -> None:
    path = directory / "meta.json"
    srsly.write_json(path, {**srsly.read_json(path), **entries})


def _blocks(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of each encoder."""
    for value in config.values():
        if isinstance(value, dict):
            if value.get("@architectures") == ARCHITECTURE:
                yield value
            yield from _blocks(value)


def _refused(agreement: Agreement, least: float) -> str | None:
    """What agrees too little, in words; not what a few units would show by chance, which is up to
    two standard deviations more differences than are allowed.
    """

    def is_bad(measure: Measure) -> bool:
        allowed = measure.n * (1 - least)
        return measure.n * (1 - measure.agreement) > allowed + 2 * sqrt(allowed)

    vectors = agreement.vectors
    if not agreement.measures and vectors is not None and vectors.cosine < least:
        return f"Token vectors agree with the original's by a mean cosine of {vectors.cosine:.6f}"
    bad = [measure for measure in agreement.measures if is_bad(measure)]
    if not bad:
        return None
    worst = min(bad, key=lambda measure: measure.agreement)
    return (
        f"{worst.pipe!r} agrees with the original in {worst.agreement:.2%} of {worst.annotation} "
        f"({worst.n:,} {worst.unit})"
    )


def _advice(precision: str, reduced_range: bool) -> str:
    if precision == "int8" and has_vnni() is False and not reduced_range:
        return " This CPU has no VNNI instructions: try --reduced-range."
    return " Raise --max-fp32-layers, or use --precision fp32." if precision == "int8" else ""
