"""Pipelines of spacy-transformers. The module has the functions of `Source`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.tokens import Doc
from spacy_transformers.annotation_setters import null_annotation_setter
from spacy_transformers.data_classes import FullTransformerBatch
from spacy_transformers.layers import TransformerListener, TransformerModel
from spacy_transformers.pipeline_component import Transformer
from thinc.api import Model

from spacy_distil.engines.config_check import EPSILONS
from spacy_distil.engines.files import CONFIG, longest_window
from spacy_distil.export.sources.source import REDUCTIONS, Reader, ReaderKey, reduce_pieces

LISTENER = "spacy-transformers.TransformerListener."
PRIVATE = "spacy-transformers.Tok2VecTransformer."

STRIDED_SPANS = "spacy-transformers.strided_spans.v1"
SENT_SPANS = "spacy-transformers.sent_spans.v1"
DOC_SPANS = "spacy-transformers.doc_spans.v1"

# `strided_spans` counts windows in tokens, spacy-distil in pieces. An English token has 1.2 pieces
# of BERT on average; this number leaves room for documents with long words.
PIECES_PER_TOKEN = 1.5
# For `sent_spans`: hardly any sentence is longer.
SENTENCE_WINDOW = 128
OVERLAP = 32


def find_transformers(nlp: Language) -> dict[str, Any]:
    return {name: pipe for name, pipe in nlp.components if isinstance(pipe, Transformer)}


def is_encoder(node: Model) -> bool:
    return isinstance(node, TransformerModel)


def is_listener(node: Model) -> bool:
    return isinstance(node, TransformerListener)


def find_readers(model: Model) -> list[Reader]:
    readers = []
    for node in model.walk():
        # Every architecture of spacy-transformers ends in this layer, which pools to tokens.
        if len(node.layers) > 1 and node.layers[-1].name == "trfs2arrays":
            pooling = node.layers[-1]
            source = next(
                n for n in node.walk() if isinstance(n, TransformerListener | TransformerModel)
            )
            listens = isinstance(source, TransformerListener)
            readers.append(
                Reader(
                    node=node,
                    pooling=REDUCTIONS.get(pooling.layers[0].name, pooling.layers[0].name),
                    grad_factor=float(pooling.attrs["grad_factor"]),
                    upstream=source.upstream_name if listens else None,
                    own=None if listens else source,
                )
            )
    return readers


def find_blocks(
    config: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for key, value in config.items():
        if not isinstance(value, dict):
            continue
        if str(value.get("@architectures", "")).startswith((LISTENER, PRIVATE)):
            yield (*path, key), value
        else:
            yield from find_blocks(value, (*path, key))


def block_key(block: dict[str, Any]) -> ReaderKey:
    layer = str(block["pooling"].get("@layers", "")).split(".v")[0]
    listens = block["@architectures"].startswith(LISTENER)
    return (
        REDUCTIONS.get(layer, layer),
        float(block.get("grad_factor", 1.0)),
        block.get("upstream", "*") if listens else None,
    )


def problems_of_component(name: str, pipe: Any) -> Iterator[str]:
    if pipe.set_extra_annotations is not null_annotation_setter:
        yield (
            f"'{name}' has set_extra_annotations, which takes the hidden states of "
            "spacy-transformers"
        )


def problems_of_encoder(name: str, encoder: TransformerModel) -> Iterator[str]:
    if encoder.transformer is None or encoder.tokenizer is None:
        yield f"'{name}' has no weights: the pipeline was not trained"
        return
    config = encoder.transformer.config
    if not encoder.tokenizer.is_fast:
        yield (
            f"'{name}' has a slow tokenizer ({type(encoder.tokenizer).__name__}), without the "
            "character offsets that align pieces with tokens"
        )
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        yield f"'{name}' is a {config.model_type!r} model with a decoder"
    elif not config.to_dict().get("max_position_embeddings"):
        yield (
            f"'{name}' is a {config.model_type!r} model, whose config has no "
            "max_position_embeddings: the maximum length of its windows is unknown"
        )


def problems_of_listeners(name: str, model: Model) -> Iterator[str]:
    yield from ()


def notes_on(name: str, pipe: Any, config: dict[str, Any]) -> Iterator[str]:
    getter = config["model"]["get_spans"].get("@span_getters")
    if getter == SENT_SPANS:
        yield (
            f"'{name}' encoded each sentence alone; now the sentences of a document share windows"
        )
    elif getter not in (STRIDED_SPANS, DOC_SPANS):
        yield f"'{name}' had windows by {getter!r}; now they are as long as the encoder allows"
    if config["model"].get("grad_scaler_config"):
        yield f"'{name}' loses its grad_scaler_config, which only training uses"


def is_frozen(pipe: Any) -> bool:
    return False


def encoder_settings(
    settings: dict[str, Any],
    initialize: dict[str, Any],
    encoder: TransformerModel,
    *,
    window: int | None,
) -> dict[str, Any]:
    chosen, overlap = _choose_windows(settings["get_spans"], encoder, window=window)
    return {
        "name": settings["name"],
        "window": chosen,
        "overlap": overlap,
        "mixed_precision": settings.get("mixed_precision", False),
    }


def _choose_windows(
    get_spans: dict[str, Any], model: TransformerModel, *, window: int | None
) -> tuple[int | None, int]:
    """Choose `window` and `overlap`: long enough to keep a document in one window, unless it has an
    unusual number of pieces.
    """
    getter = get_spans.get("@span_getters")
    longest = longest_window(model.transformer.config.to_dict())
    n_special = model.tokenizer.num_special_tokens_to_add()
    chosen, overlap = None, OVERLAP
    if getter == STRIDED_SPANS:
        chosen = min(longest, n_special + ceil(PIECES_PER_TOKEN * get_spans["window"]))
        overlap = max(0, get_spans["window"] - get_spans["stride"])
    elif getter == SENT_SPANS:
        chosen = min(longest, SENTENCE_WINDOW)
    chosen = window or chosen
    room = (chosen or longest) - n_special
    return chosen, max(0, min(overlap, room // 2))


def save_encoder(encoder: TransformerModel, directory: Path) -> None:
    """Write an encoder and its tokenizer as a Hugging Face model directory.

    spacy-transformers loads a config by way of JSON with 9 decimals, in which the epsilon of BERT's
    layer normalization, 1e-12, becomes 0. The default of the family takes its place.
    """
    encoder.transformer.save_pretrained(directory, safe_serialization=True)
    encoder.tokenizer.save_pretrained(directory)
    path = directory / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    defaults = type(encoder.transformer.config)().to_dict()
    rounded = [name for name in EPSILONS if config.get(name) == 0]
    config.update({name: defaults[name] for name in rounded})
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def windows_of(encoder: TransformerModel, doc: Doc) -> list[list[int]] | None:
    # spacy-transformers truncates them.
    windows = [
        encoder.tokenizer(span.text)["input_ids"][: encoder.tokenizer.model_max_length]
        for span in encoder.attrs["get_spans"]([doc])[0]
    ]
    longest = longest_window(encoder.transformer.config.to_dict())
    return windows if all(len(ids) <= longest for ids in windows) else None


def write_tensors(pipe: Transformer, pooling: str) -> None:
    pipe.set_extra_annotations = partial(_write_tensors, pooling)


def _write_tensors(pooling: str, docs: list[Doc], batch: FullTransformerBatch) -> None:
    for doc, data in zip(docs, batch.doc_data, strict=True):
        if len(doc):
            hidden = data.model_output.last_hidden_state
            rows = hidden.reshape(-1, hidden.shape[-1])[data.align.dataXd]
            doc.tensor = reduce_pieces(rows, data.align.lengths, pooling)
