"""Turn a trained pipeline into one that runs on ONNX Runtime without torch, in int8 or float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import srsly
from spacy.language import Language
from thinc.api import Config

from spacy_distil.component.nlp_config import set_requirements
from spacy_distil.cpu import cpu_model, has_vnni
from spacy_distil.encoding import PieceTokenizer, read_docs
from spacy_distil.engines.files import TOKENIZER, parse_config
from spacy_distil.errors import TRAINING, ConfigError, require_all
from spacy_distil.export.agreement import Agreement, PipeMeasure, measure_agreement
from spacy_distil.pairs.samples import give_texts
from spacy_distil.pipelines import check_pipeline, load_pipeline
from spacy_distil.runs.files import atomic_directory, scratch_directory
from spacy_distil.runs.outputs import check_output
from spacy_distil.text.documents import Documents, example_documents, read_documents
from spacy_distil.text.plain_text import TxtDocuments

if TYPE_CHECKING:
    from spacy_distil.export.encoders import SourceEncoder
    from spacy_distil.export.graph import Precision
    from spacy_distil.students.vocabulary import PruningLoss
    from spacy_distil.students.vocabulary.kinds import Text

T = TypeVar("T")
PrecisionName = Literal["int8", "fp32"]
PRECISIONS: tuple[str, ...] = get_args(PrecisionName)
ARCHITECTURE = "spacy-distil.DistilTransformer.v1"
# Modules that `quantize` needs, and their extras.
NEEDS = {"onnx": "export", **TRAINING}
# Documents that the sensitivity of layers is measured on.
TRIAL_DOCS = 64


@dataclass(frozen=True)
class Pruning:
    """Effect of pruning a vocabulary.

    n_before, n_after: number of pieces.
    loss: effect on the words of the documents.
    """

    n_before: int
    n_after: int
    loss: PruningLoss


@dataclass(frozen=True)
class Quantization:
    """Results of `quantize`.

    precision: "int8" or "fp32".
    reduced_range: whether int8 weights use 7 bits.
    embedding_bits: of the numbers in the embeddings of pieces, in int8.
    cpu: the CPU that the pipelines were compared on.
    vnni: whether that CPU adds up int8 products without saturating; `None` if unknown.
    fp32_layers, sensitivity: see `spacy_distil.export.fallback.Int8Plan`.
    pruning: effect of pruning the vocabulary; `None` without pruning.
    documents: source of the documents that the pipelines were compared on.
    agreement: of the quantized pipeline with the original.
    """

    precision: str
    reduced_range: bool
    embedding_bits: int
    cpu: str
    vnni: bool | None
    fp32_layers: dict[str, list[int]]
    sensitivity: dict[str, list[float]]
    pruning: Pruning | None
    documents: str
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        """All results for JSON."""
        return {**asdict(self), "agreement": self.agreement.to_dict()}


def quantize(
    pipeline: str | Path,
    output: str | Path,
    *,
    corpus: str | Path | None = None,
    limit: int = 0,
    precision: PrecisionName = "int8",
    min_agreement: float = 0.95,
    max_fp32_layers: int | None = None,
    reduced_range: bool = False,
    embedding_bits: Literal[8, 4] = 8,
    prune_vocab: str | Path | None = None,
    vocab_size: int | None = None,
    txt_documents: TxtDocuments = "auto",
    batch_size: int = 64,
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
) -> Quantization:
    """Write a pipeline whose encoders run on ONNX Runtime, if it agrees with the original.

        result = quantize("training/model-best", "training/int8", corpus="corpus/dev.spacy")
        nlp = spacy.load("training/int8")

    pipeline: directory or package of a pipeline with encoders of spacy-distil, on the torch engine.
    output: directory of the new pipeline.
    corpus: documents to compare the pipelines on: .spacy (scored too), .txt or .jsonl; `None` for a
        few sentences in the pipeline's language that come with spaCy.
    limit: only the first N documents; 0 for all.
    precision: "int8", or "fp32" for the same numbers without torch.
    min_agreement: lowest agreement of each pipe's predictions with the original's, with an
        allowance for chance in a few documents. For a pipeline without predictions, the lowest mean
        cosine of its token vectors.
    max_fp32_layers: number of layers of each encoder that may stay in float32 to reach this
        agreement, the most sensitive first; `None` for half of them.
    reduced_range: whether int8 weights use 7 bits, for CPUs without VNNI.
    embedding_bits: bits of the numbers in the embeddings of pieces: 8, or 4 for half of their size.
    prune_vocab: documents; the vocabulary drops the pieces that do not occur in them. `None` keeps
        all.
    vocab_size: number of pieces to keep with `prune_vocab`; `None` for those that occur.
    txt_documents: how .txt files are divided into documents, see `TxtDocuments`.
    batch_size: documents per batch of the comparison.
    force: whether to replace a pipeline in `output`.
    log: callback that receives a line for each step.
    RETURNS: the agreement, and the settings that it was reached with.

    Raises ConfigError, and writes nothing, if an encoder cannot become a graph or the agreement is
    too low.
    """
    require_all(NEEDS, purpose="Making an ONNX graph")
    from spacy_distil.export.fallback import Int8Plan
    from spacy_distil.export.graph import Precision
    from spacy_distil.students.sample_text import read_corpus

    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: expected one of {', '.join(PRECISIONS)}.")
    if not 0 <= min_agreement <= 1:
        raise ConfigError(f"min_agreement = {min_agreement}: expected 0 to 1.")
    if embedding_bits not in (8, 4):
        raise ConfigError(f"embedding_bits = {embedding_bits!r}: expected 8 or 4.")
    if embedding_bits == 4 and precision != "int8":
        raise ConfigError(
            f"embedding_bits = 4 with precision = {precision!r}: embeddings are rounded only in "
            "int8. Leave out one of the two."
        )
    if vocab_size is not None and prune_vocab is None:
        raise ConfigError(
            f"--vocab-size {vocab_size} is the number of pieces to keep of those that "
            "--prune-vocab counts: name documents with that option too."
        )
    pipeline, output = str(pipeline), Path(output)
    check_pipeline(pipeline)
    check_output(output, force=force, source=Path(pipeline))
    log(f"Loading {pipeline}")
    original = load_pipeline(pipeline)
    encoders = _read_encoders(pipeline, original)
    if corpus is None:
        documents = example_documents(original)
    else:
        documents = read_documents(
            Path(corpus), original, limit=limit, txt_documents=txt_documents, log=log
        )
    if given := give_texts(original, documents.docs):
        log(
            f"The documents have no pairs of texts for {', '.join(given)}: each is compared with "
            "the next one"
        )
    pruning = None
    if prune_vocab is not None:
        log(f"Pruning the vocabulary to {prune_vocab}")
        counted = read_corpus(
            Path(prune_vocab), setting="--prune-vocab", txt_documents=txt_documents, log=log
        )
        encoders, pruning = _prune(encoders, original, counted, documents, vocab_size=vocab_size)
    plan = Int8Plan(encoders, reduced_range=reduced_range, embedding_bits=embedding_bits)
    with atomic_directory(output) as directory:
        while True:
            log(f"Making the graph: {plan if precision == 'int8' else precision}")
            precisions = {
                name: plan.precision(name) if precision == "int8" else Precision()
                for name in encoders
            }
            _write(pipeline, encoders, precisions, directory)
            candidate = load_pipeline(directory)
            log(f"Comparing the predictions for {len(documents.docs):,} documents")
            agreement = measure_agreement(
                original, candidate, documents.docs, batch_size=batch_size, alone=False, rounds=0
            )
            disagreement = _find_disagreement(agreement, min_agreement)
            if (
                disagreement is None
                or precision != "int8"
                or not plan.can_fall_back(max_fp32_layers)
            ):
                break
            log(f"{disagreement}; leaving one more layer in float32")
            plan.fall_back(documents.docs[:TRIAL_DOCS], max_fp32_layers)
        if disagreement is not None:
            raise ConfigError(
                f"{disagreement}; expected at least {min_agreement:.2%} (--min-agreement). "
                f"Nothing was written.{_advice(precision, reduced_range)}"
            )
        agreement = measure_agreement(
            original,
            candidate,
            documents.docs,
            gold=documents.gold,
            batch_size=batch_size,
            paths=(Path(str(original.path)), directory),
            log=log,
        )
        if agreement.candidate_scores:
            # The meta still has the scores of the original.
            _update_meta(directory, performance=agreement.candidate_scores)
    return Quantization(
        precision=precision,
        reduced_range=reduced_range,
        embedding_bits=embedding_bits,
        cpu=cpu_model(),
        vnni=has_vnni(),
        fp32_layers=plan.fp32_layers,
        sensitivity=plan.sensitivity,
        pruning=pruning,
        documents="spaCy's example sentences" if corpus is None else str(corpus),
        agreement=agreement,
    )


def quantize_converted(
    convert: Callable[[Path], T],
    output: Path,
    *,
    force: bool,
    log: Callable[[str], Any],
    **settings: Any,
) -> tuple[T, Quantization]:
    """Quantize what a conversion writes. Only the quantized pipeline stays.

    convert: writes a pipeline into a directory, and returns what it has found.
    settings: more arguments of `quantize`. For the others see there.
    RETURNS: the results of both steps.
    Raises ConfigError, and writes nothing, if one of them fails.
    """
    with scratch_directory(output.parent) as scratch:
        converted = scratch / "converted"
        conversion = convert(converted)
        log("Quantizing the converted pipeline")
        try:
            return conversion, quantize(converted, output, force=force, log=log, **settings)
        except ConfigError as error:
            raise ConfigError(
                f"The converted pipeline cannot be quantized: {error} Convert it without "
                "quantizing, and then try 'spacy distil quantize' with other settings."
            ) from error


def _read_encoders(pipeline: str, nlp: Language) -> dict[str, SourceEncoder]:
    from spacy_distil.export.encoders import SourceEncoder, encodes_pairs, find_encoders

    shims = find_encoders(nlp)
    if not shims:
        raise ConfigError(
            f"{pipeline} has no encoder of spacy-distil (its pipes: {', '.join(nlp.pipe_names)}). "
            "'spacy distil convert' gives one to a spacy-transformers pipeline."
        )
    for name, shim in shims.items():
        if shim.settings.engine == "onnx":
            raise ConfigError(
                f"The encoder of {name!r} in {pipeline} runs on ONNX Runtime already. "
                "Start from the pipeline that it was made from."
            )
    return {
        name: SourceEncoder(shim, reads_pairs=encodes_pairs(nlp, shim))
        for name, shim in shims.items()
    }


def _prune(
    encoders: dict[str, SourceEncoder],
    nlp: Language,
    counted: Iterable[str],
    corpus: Documents,
    *,
    vocab_size: int | None,
) -> tuple[dict[str, SourceEncoder], Pruning]:
    """Prune the encoders' vocabulary to the pieces of `counted`. For the rest see `quantize`."""
    from spacy_distil.export.encoders import SourceEncoder
    from spacy_distil.students.vocabulary import (
        prune_encoder,
        prune_vocabulary,
        pruning_loss,
        special_config_ids,
    )

    ways = {
        (encoder.files[TOKENIZER].decode(), encoder.shim.settings.pieces_from)
        for encoder in encoders.values()
    }
    if len(ways) > 1:
        raise ConfigError(
            "The pipeline's encoders have different vocabularies, or read text in different ways, "
            "so their pieces cannot be counted together. Leave pruning out."
        )
    old, pieces_from = ways.pop()
    counts: Iterable[Text] = counted
    compared: Iterable[Text] = corpus.texts
    if pieces_from == "tokens":
        counts = (read_docs([nlp.make_doc(text)])[0].split() for text in counted)
        compared = [doc.split() for doc in read_docs(corpus.docs)]
    configs = [parse_config(encoder.files) for encoder in encoders.values()]
    special = {i for config in configs for i in special_config_ids(config)}
    pruned = prune_vocabulary(old, counts, size=vocab_size, special=special)
    loss = pruning_loss(
        PieceTokenizer.from_str(old), PieceTokenizer.from_str(pruned.tokenizer_json), compared
    )
    return {
        name: SourceEncoder(
            encoder.shim, prune_encoder(encoder.files, pruned), reads_pairs=encoder.reads_pairs
        )
        for name, encoder in encoders.items()
    }, Pruning(pruned.n_before, pruned.n_kept, loss)


def _write(
    pipeline: str,
    encoders: dict[str, SourceEncoder],
    precisions: dict[str, Precision],
    directory: Path,
) -> None:
    """Write the pipeline with other encoders, and with its own pipes and settings."""
    from spacy_distil.export.encoders import replace_encoders

    nlp = load_pipeline(pipeline)
    replace_encoders(
        nlp, {name: encoder.to_shim(precisions[name]) for name, encoder in encoders.items()}
    )
    nlp.to_disk(directory)
    config = Config().from_disk(directory / "config.cfg", interpolate=False)
    for block in _find_encoder_blocks(config["components"]):
        block["engine"] = "onnx"
    config.to_disk(directory / "config.cfg")
    meta = srsly.read_json(directory / "meta.json")
    set_requirements(meta, "onnx", config)
    srsly.write_json(directory / "meta.json", meta)


def _update_meta(directory: Path, **entries: Any) -> None:
    path = directory / "meta.json"
    srsly.write_json(path, {**srsly.read_json(path), **entries})


def _find_encoder_blocks(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Find the settings of each encoder."""
    for value in config.values():
        if isinstance(value, dict):
            if value.get("@architectures") == ARCHITECTURE:
                yield value
            yield from _find_encoder_blocks(value)


def _find_disagreement(agreement: Agreement, min_agreement: float) -> str | None:
    """Describe the pipe with the lowest agreement, if it is too low.

    A few units may differ by chance: up to two standard deviations more differences are accepted.
    """

    def is_too_low(measure: PipeMeasure) -> bool:
        allowed = measure.n * (1 - min_agreement)
        return measure.n * (1 - measure.agreement) > allowed + 2 * sqrt(allowed)

    vectors = agreement.vectors
    if not agreement.measures and vectors is not None and vectors.cosine < min_agreement:
        return f"Token vectors agree with the original's by a mean cosine of {vectors.cosine:.6f}"
    too_low = [measure for measure in agreement.measures if is_too_low(measure)]
    if not too_low:
        return None
    worst = min(too_low, key=lambda measure: measure.agreement)
    return (
        f"{worst.pipe!r} agrees with the original in {worst.agreement:.2%} of {worst.annotation} "
        f"({worst.n:,} {worst.unit})"
    )


def _advice(precision: str, reduced_range: bool) -> str:
    if precision == "int8" and has_vnni() is False and not reduced_range:
        return " This CPU has no VNNI instructions: try --reduced-range."
    return " Raise --max-fp32-layers, or use --precision fp32." if precision == "int8" else ""
