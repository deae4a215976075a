"""Pipelines of spacy-curated-transformers. The module has the functions of `Source`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curated_transformers.models.curated_transformer import CuratedTransformer as Module
from spacy.language import Language
from spacy.tokens import Doc
from spacy_curated_transformers.models.listeners import ListenerStateUtils
from spacy_curated_transformers.pipeline.transformer import CuratedTransformer
from thinc.api import Model

from spacy_distil.engines.files import TOKENIZER, longest_window
from spacy_distil.export.sources.curated_pieces import (
    UnknownPieces,
    build_tokenizer,
    note_on_pieces,
)
from spacy_distil.export.sources.curated_weights import FAMILIES, read_config, to_transformers
from spacy_distil.export.sources.source import (
    REDUCTIONS,
    Reader,
    ReaderKey,
    reduce_pieces,
)

LISTENER = "spacy-curated-transformers.LastTransformerLayerListener."
# The setting of a transformer inside a pipe, with the block of the listener behind it.
WRAPPED = "wrapped_listener"
# Names of layers.
ENCODER = "transformer_model"
WRAPPER = "wrapped_transformer_and_listener"
LAST_LAYER_LISTENER = "last_transformer_layer_listener"
REFUSED = {
    "scalar_weighting_listener": "ScalarWeightingListener",
    "transformer_layers_listener": "TransformerLayersListener",
}
SPANS = "with_strided_spans"


def find_transformers(nlp: Language) -> dict[str, Any]:
    return {name: pipe for name, pipe in nlp.components if isinstance(pipe, CuratedTransformer)}


def is_encoder(node: Model) -> bool:
    return node.name == ENCODER


def is_listener(node: Model) -> bool:
    return ListenerStateUtils.is_listener(node)


def find_readers(model: Model) -> list[Reader]:
    readers = []
    for node in model.walk():
        if node.name == WRAPPER:
            encoder, listener = node.layers
            factor = 0.0 if encoder.attrs["_frozen"] else float(listener.attrs["grad_factor"])
            readers.append(Reader(node, _pooling(listener), factor, None, encoder))
        elif node.name == LAST_LAYER_LISTENER and is_listener(node):
            upstream = ListenerStateUtils.get_upstream_name(node)
            factor = float(node.attrs["grad_factor"])
            readers.append(Reader(node, _pooling(node), factor, upstream, None))
    return readers


def _pooling(listener: Model) -> str:
    name = listener.layers[-1].layers[0].name
    return REDUCTIONS.get(name, name)


def find_blocks(
    config: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for key, value in config.items():
        if not isinstance(value, dict):
            continue
        if str(value.get("@architectures", "")).startswith(LISTENER) or value.get(WRAPPED):
            yield (*path, key), value
        else:
            yield from find_blocks(value, (*path, key))


def block_key(block: dict[str, Any]) -> ReaderKey:
    listener = block.get(WRAPPED) or block
    layer = str(listener["pooling"].get("@layers", "")).split(".v")[0]
    return (
        REDUCTIONS.get(layer, layer),
        float(listener.get("grad_factor", 1.0)),
        None if block.get(WRAPPED) else listener.get("upstream", "*"),
    )


def problems_of_component(name: str, pipe: Any) -> Iterator[str]:
    yield from ()


def problems_of_encoder(name: str, encoder: Model) -> Iterator[str]:
    module = _module(encoder)
    if not isinstance(module, Module):
        yield f"'{name}' is a TorchScript model, whose layers cannot be read"
    elif type(module.curated_encoder) not in FAMILIES:
        families = ", ".join(family.__name__ for family in FAMILIES)
        yield (
            f"'{name}' has the encoder {type(module.curated_encoder).__name__}; expected one of "
            f"{families}"
        )
    if not any(node.name == SPANS for node in encoder.walk()):
        yield f"'{name}' makes its windows without WithStridedSpans"
    try:
        build_tokenizer(encoder.get_ref("piece_encoder"))
    except UnknownPieces as error:
        yield f"'{name}' {error}"


def problems_of_listeners(name: str, model: Model) -> Iterator[str]:
    for kind in dict.fromkeys(node.name for node in model.walk() if node.name in REFUSED):
        yield (
            f"'{name}' has a {REFUSED[kind]}, which reads all layers; expected "
            "LastTransformerLayerListener. The pipeline can teach a pipeline of spacy-distil: "
            "'spacy distil pipeline'"
        )


def notes_on(name: str, pipe: Any, config: dict[str, Any]) -> Iterator[str]:
    if note := note_on_pieces(pipe.model.get_ref("piece_encoder")):
        yield f"'{name}' {note}"
    tokenizer = build_tokenizer(pipe.model.get_ref("piece_encoder"))
    padding = _module(pipe.model).curated_encoder.padding_idx
    if padding in tokenizer.encode("\ue000", add_special_tokens=False).ids:
        yield (
            f"'{name}' took unknown pieces for padding (padding_idx = {padding}), which the others "
            "did not see; now they do"
        )
    if config["model"].get("grad_scaler_config"):
        yield f"'{name}' loses its grad_scaler_config, which only training uses"


def is_frozen(pipe: Any) -> bool:
    return bool(pipe.frozen)


def encoder_settings(
    settings: dict[str, Any],
    initialize: dict[str, Any],
    encoder: Model,
    *,
    window: int | None,
) -> dict[str, Any]:
    module = _module(encoder).curated_encoder
    spans = _spans(encoder)
    longest = min(module.max_seq_len, longest_window(read_config(module).to_dict()))
    chosen = window or min(spans["window"], longest)
    room = chosen - 2  # both special pieces
    return {
        # Only the callback that loads the weights may know their name.
        "name": initialize.get("encoder_loader", {}).get("name")
        or str(settings["@architectures"]).split(".")[1],
        "pieces_from": "tokens",
        "window": chosen,
        "overlap": max(0, min(spans["window"] - spans["stride"], room // 2)),
        "mixed_precision": settings.get("mixed_precision", False),
    }


def save_encoder(encoder: Model, directory: Path) -> None:
    to_transformers(_module(encoder).curated_encoder).save_pretrained(
        directory, safe_serialization=True
    )
    build_tokenizer(encoder.get_ref("piece_encoder")).save(str(directory / TOKENIZER))
    # Or transformers would take the tokenizer of the family, which reads text.
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def windows_of(encoder: Model, doc: Doc) -> list[list[int]] | None:
    try:
        pieces = encoder.get_ref("piece_encoder").predict([doc])[0].dataXd.tolist()
    except ValueError:  # a piece that is not in the vocabulary
        return None
    spans = _spans(encoder)
    windows = [
        pieces[start : start + spans["window"]] for start in range(0, len(pieces), spans["stride"])
    ]
    module = _module(encoder).curated_encoder
    if module.padding_idx in pieces:
        # The encoder takes them for padding, which nobody else does.
        windows = [[-1] * len(window) for window in windows]
    longest = module.max_seq_len
    return windows if all(len(window) <= longest for window in windows) else None


def write_tensors(pipe: Any, pooling: str) -> None:
    annotate = pipe.set_annotations

    def annotate_and_write(docs: list[Doc], outputs: Any) -> None:
        annotate(docs, outputs)
        for doc in docs:
            pieces = doc._.trf_data.last_hidden_layer_state
            doc.tensor = reduce_pieces(pieces.dataXd, pieces.lengths, pooling)

    pipe.set_annotations = annotate_and_write


def _module(encoder: Model) -> Any:
    """Return the torch module of an encoder."""
    return encoder.get_ref("transformer").shims[0]._model


def _spans(encoder: Model) -> dict[str, int]:
    """Return stride and window, in pieces."""
    return next(node.attrs for node in encoder.walk() if node.name == SPANS)
