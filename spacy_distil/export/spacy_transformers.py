"""The format of spacy-transformers pipelines, which no other module knows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy_transformers.annotation_setters import null_annotation_setter
from spacy_transformers.layers import TransformerListener, TransformerModel
from spacy_transformers.pipeline_component import Transformer
from thinc.api import Model

from spacy_distil.encoding import POOLINGS
from spacy_distil.engines.config_check import EPSILONS
from spacy_distil.engines.files import CONFIG, longest_window

LISTENER = "spacy-transformers.TransformerListener."
PRIVATE = "spacy-transformers.Tok2VecTransformer."
REDUCTIONS = {f"reduce_{pooling}": pooling for pooling in POOLINGS}

STRIDED_SPANS = "spacy-transformers.strided_spans.v1"
SENT_SPANS = "spacy-transformers.sent_spans.v1"
DOC_SPANS = "spacy-transformers.doc_spans.v1"

# `strided_spans` counts windows in tokens, spacy-distil in pieces. An English token has 1.2 pieces
# of BERT on average; this number leaves room for documents with long words.
PIECES_PER_TOKEN = 1.5
# For `sent_spans`: hardly any sentence is longer.
SENTENCE_WINDOW = 128
OVERLAP = 32


@dataclass(frozen=True)
class Reader:
    """A layer of a pipe that reads token vectors from a transformer.

    node: the layer: docs in, one (n_tokens, width) array per doc out.
    pooling: name of the reduction, e.g. "mean"; for any other layer the layer's name.
    grad_factor: factor of the gradient that it passes to the transformer.
    upstream: name of the component that it listens to, or "*"; `None` for a reader with a
        transformer of its own, which `nlp.replace_listeners` makes.
    own: the reader's own transformer; `None` for a listener.
    """

    node: Model
    pooling: str
    grad_factor: float
    upstream: str | None
    own: TransformerModel | None

    @property
    def key(self) -> tuple[str, float, str | None]:
        """The settings that identify the reader in config and model."""
        return self.pooling, self.grad_factor, self.upstream


def find_transformers(nlp: Language) -> dict[str, Transformer]:
    """Find the transformer components of a pipeline by name, in order."""
    return {name: pipe for name, pipe in nlp.components if isinstance(pipe, Transformer)}


def find_readers(pipe: Any) -> list[Reader]:
    """Find the layers of a pipe that read a transformer."""
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model) or isinstance(pipe, Transformer):
        return []
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
    """Find the blocks of the readers in a pipe's config. RETURNS: path and block of each."""
    for key, value in config.items():
        if not isinstance(value, dict):
            continue
        if str(value.get("@architectures", "")).startswith((LISTENER, PRIVATE)):
            yield (*path, key), value
        else:
            yield from find_blocks(value, (*path, key))


def block_key(block: dict[str, Any]) -> tuple[str, float, str | None]:
    """Read the `Reader.key` from the reader's block in the config."""
    layer = str(block["pooling"].get("@layers", "")).split(".v")[0]
    listens = block["@architectures"].startswith(LISTENER)
    return (
        REDUCTIONS.get(layer, layer),
        float(block.get("grad_factor", 1.0)),
        block.get("upstream", "*") if listens else None,
    )


def choose_windows(
    get_spans: dict[str, Any], model: TransformerModel, *, window: int | None = None
) -> tuple[int | None, int]:
    """Choose the settings `window` and `overlap` of a converted encoder.

    An encoder that was trained on short windows is worse on long ones. The new windows are
    therefore about as long as in training. They are long enough to keep a document in one window,
    unless it has an unusual number of pieces.

    get_spans: block of the span getter in the config of `model`.
    window: the user's choice; `None` for none.
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


def save_encoder(model: TransformerModel, directory: Path) -> None:
    """Write an encoder and its tokenizer as a Hugging Face model directory.

    spacy-transformers loads a config by way of JSON with 9 decimals, in which the epsilon of BERT's
    layer normalization, 1e-12, becomes 0. The default of the family takes its place.
    """
    model.transformer.save_pretrained(directory, safe_serialization=True)
    model.tokenizer.save_pretrained(directory)
    path = directory / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    defaults = type(model.transformer.config)().to_dict()
    rounded = [name for name in EPSILONS if config.get(name) == 0]
    config.update({name: defaults[name] for name in rounded})
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def note_on_windows(get_spans: dict[str, Any]) -> str:
    """Describe the changes of a span getter beyond long documents; empty for none."""
    getter = get_spans.get("@span_getters")
    if getter == SENT_SPANS:
        return "encoded each sentence alone; now the sentences of a document share windows"
    if getter not in (STRIDED_SPANS, DOC_SPANS):
        return f"had windows by {getter!r}; now they are as long as the encoder allows"
    return ""


def problems_of_transformer(name: str, pipe: Transformer) -> Iterator[str]:
    """Find the reasons why a transformer component cannot be converted."""
    if pipe.set_extra_annotations is not null_annotation_setter:
        yield (
            f"'{name}' has set_extra_annotations, which takes the hidden states of "
            "spacy-transformers"
        )
    yield from problems_of_encoder(name, pipe.model)


def problems_of_encoder(name: str, model: TransformerModel) -> Iterator[str]:
    """Find the reasons why an encoder cannot be converted."""
    if model.transformer is None or model.tokenizer is None:
        yield f"'{name}' has no weights: the pipeline was not trained"
        return
    config = model.transformer.config
    if not model.tokenizer.is_fast:
        yield (
            f"'{name}' has a slow tokenizer ({type(model.tokenizer).__name__}), without the "
            "character offsets that align pieces with tokens"
        )
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        yield f"'{name}' is a {config.model_type!r} model with a decoder"
    elif not config.to_dict().get("max_position_embeddings"):
        yield (
            f"'{name}' is a {config.model_type!r} model, whose config has no "
            "max_position_embeddings: the maximum length of its windows is unknown"
        )


def problems_of_readers(name: str, pipe: Any, config: dict[str, Any]) -> Iterator[str]:
    """Find the reasons why a pipe that reads transformers cannot be converted.

    config: the config of the pipe.
    """
    readers = find_readers(pipe)
    blocks = dict(find_blocks(config))
    unknown = {reader.pooling for reader in readers} - set(POOLINGS)
    for pooling in unknown:
        yield (
            f"'{name}' has the pooling {pooling!r}; expected one of "
            f"{', '.join(f'{layer}.v1' for layer in REDUCTIONS)}"
        )
    for reader in readers:
        if reader.own is not None:
            yield from problems_of_encoder(name, reader.own)
    model = getattr(pipe, "model", None)
    if isinstance(model, Model):
        covered = {node.id for reader in readers for node in reader.node.walk()}
        if any(
            isinstance(node, TransformerListener | TransformerModel) and node.id not in covered
            for node in model.walk()
        ):
            yield f"'{name}' uses hidden states that are not pooled to tokens"
        elif any(reader.node is model for reader in readers):
            yield f"'{name}' has a listener for its whole model"
        elif not unknown and Counter(map(block_key, blocks.values())) != Counter(
            r.key for r in readers
        ):
            yield f"'{name}' has other listeners in its config than in its model"
    if sum(reader.own is not None for reader in readers) > 1:
        yield f"'{name}' has several transformers of its own"
