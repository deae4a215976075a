"""The tokenizer.json and config.json of a vocabulary whose ids have changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spacy_distil.engines.files import CONFIG, TOKENIZER, first_position
from spacy_distil.errors import WeightsError
from spacy_distil.students.vocabulary.kinds import Kind


def special_ids(kind: Kind) -> set[int]:
    """Collect the ids that other parts of the tokenizer refer to. They must stay."""
    content = kind.content
    ids = {*kind.added.values()}
    if kind.unknown_id is not None:
        ids.add(kind.unknown_id)

    def collect(i: int) -> int:
        ids.add(i)
        return i

    _map_processor(content.get("post_processor"), collect)
    _map_padding(content.get("padding"), collect)
    return ids


def special_config_ids(config: Mapping[str, Any]) -> set[int]:
    """Collect the ids of special pieces in a `config.json`."""
    return {
        value
        for setting, value in config.items()
        if setting.endswith("_token_id") and isinstance(value, int)
    }


def renumber(kind: Kind, new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Renumber a tokenizer.json to the kept ids. new_ids: as `Kind.number` returns them.

    Raises WeightsError if it numbers two pieces alike.
    """
    from tokenizers import Tokenizer

    content = kind.content
    renumbered = {
        **content,
        "padding": _map_padding(content.get("padding"), new_ids.__getitem__),
        "added_tokens": [
            {**added, "id": new_ids[kind.added[added["content"]]]}
            for added in sorted(content["added_tokens"], key=lambda a: kind.added[a["content"]])
        ],
        "post_processor": _map_processor(content.get("post_processor"), new_ids.__getitem__),
        "model": kind.keep(new_ids),
    }
    old = kind.reader.read_vocabulary()
    expected = {piece: new_ids[i] for piece, i in old.items() if i in new_ids}
    found = Tokenizer.from_str(json.dumps(renumbered)).get_vocab(with_added_tokens=True)
    if wrong := sorted(dict(expected.items() ^ found.items())):
        raise WeightsError(
            f"{TOKENIZER} gives one id to two pieces, or none to a special piece, among them "
            f"{wrong[0]!r}, so its pieces cannot be numbered anew. Leave vocabulary pruning out."
        )
    return renumbered


def _map_padding(padding: Any, new: Callable[[int], int]) -> Any:
    return padding and {**padding, "pad_id": new(padding["pad_id"])}


def _map_processor(processor: Any, new: Callable[[int], int]) -> Any:
    """Map the ids of the special pieces that a post-processor adds."""
    if processor is None:
        return None
    mapped = dict(processor)
    if processor["type"] == "Sequence":
        mapped["processors"] = [_map_processor(part, new) for part in processor["processors"]]
    elif processor["type"] == "TemplateProcessing":
        mapped["special_tokens"] = {
            name: {**special, "ids": [new(i) for i in special["ids"]]}
            for name, special in processor["special_tokens"].items()
        }
    else:  # BertProcessing, RobertaProcessing: (piece, id)
        for end in ("sep", "cls"):
            if end in processor:
                piece, i = processor[end]
                mapped[end] = [piece, new(i)]
    return mapped


def renumber_config(config: Mapping[str, Any], kept_ids: np.ndarray) -> dict[str, Any]:
    """Update the number of pieces and the ids of special pieces in a `config.json`.

    Raises WeightsError if it is another tokenizer's, or the encoder's positions would change.
    """
    new_ids = {int(old): new for new, old in enumerate(kept_ids)}
    renumbered = {**config, "vocab_size": len(kept_ids)}
    for setting, value in config.items():
        if setting.endswith("_token_id") and isinstance(value, int):
            if value not in new_ids:
                raise WeightsError(
                    f"{setting} = {value} in {CONFIG} is none of the special pieces in "
                    f"{TOKENIZER}. The files do not belong together."
                )
            renumbered[setting] = new_ids[value]
    if first_position(renumbered) != first_position(config):
        raise WeightsError(
            f"pad_token_id = {config['pad_token_id']} becomes {renumbered['pad_token_id']} if "
            f"pieces in front of it are dropped, and {config['model_type']!r} encoders number "
            "positions from there on. Leave vocabulary pruning out."
        )
    return renumbered
