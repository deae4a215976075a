"""Short names for what a teacher's cache was made of: the same for the same, in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import srsly
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import Model
from thinc.util import is_xp_array, to_numpy

DIGEST_SIZE = 16
# What using a model changes in it: spaCy's transition models set their dropout to 0 to predict.
PASSING_ATTRS = ("dropout_rate",)
# Where spacy-transformers says that its config comes from: a temporary directory of this process.
PASSING_SETTINGS = ("_name_or_path",)


def fingerprint_pipeline(nlp: Language) -> str:
    """Of the active pipes, in their order: names, configs and everything that they have learned,
    and of the vectors and tables of the vocab that their features come from.

    Loading a pipeline again, or using it, does not change it; one other weight does.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    configs = nlp.config["components"]
    _feed(digest, nlp.lang)
    for name, pipe in nlp.pipeline:
        _feed(digest, [name, configs.get(name, {})])
        model = getattr(pipe, "model", None)
        if isinstance(model, Model):
            _feed(digest, _learned(model))
        if hasattr(pipe, "to_bytes"):
            _feed(digest, pipe.to_bytes(exclude=["vocab", "model"]))
    vectors = nlp.vocab.vectors
    _feed(digest, vectors.to_bytes(exclude=["strings", "vectors"]))
    _feed(digest, getattr(vectors, "data", None))  # not through `to_bytes`, which copies all of it
    _feed(digest, nlp.vocab.lookups.to_bytes())
    return digest.hexdigest()


def fingerprint_docs(docs: Iterable[Doc]) -> str:
    """Of the words of each doc, and the spaces between them.

    Another tokenization of the same text, or the same words in other docs, has another one.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for doc in docs:
        digest.update(len(doc).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(doc.to_array(["ORTH", "SPACY"]), dtype="<u8").data)
    return digest.hexdigest()


def _learned(model: Model) -> dict[str, Any]:
    """A model as thinc saves it, without what is not the same in the next process."""
    saved = model.to_dict()
    return {
        **saved,
        "attrs": [
            {name: value for name, value in attrs.items() if name not in PASSING_ATTRS}
            for attrs in saved["attrs"]
        ],
        "shims": [[_unpacked(data) for data in shims] for shims in saved["shims"]],
    }


def _unpacked(data: bytes) -> Any:
    """What a shim saves of itself, as a dict where it is one.

    As bytes, the files of a tokenizer would have the order of a directory on some file system.
    """
    try:
        saved = srsly.msgpack_loads(data)
    except ValueError:
        return data
    if not isinstance(saved, dict):
        return data
    if isinstance(saved.get("config"), dict):
        config = saved["config"].items()
        saved["config"] = {name: value for name, value in config if name not in PASSING_SETTINGS}
    return saved


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    """Add a value with its kind and size, so that no two values add the same bytes.

    Dicts are sorted. Arrays are read where they lie.
    """
    if isinstance(value, Mapping):
        digest.update(f"dict {len(value)};".encode())
        for key in sorted(value, key=repr):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    elif is_xp_array(value):
        array = np.ascontiguousarray(to_numpy(value))
        digest.update(f"array {array.dtype.str} {array.shape};".encode())
        digest.update(array.data)
    else:
        data = value if isinstance(value, bytes) else repr(value).encode("utf8")
        digest.update(f"{type(value).__name__} {len(data)};".encode())
        digest.update(data)
