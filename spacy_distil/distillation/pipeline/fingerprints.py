"""Digests of pipelines and documents. Equal contents have equal digests in every process."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import srsly
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import Model
from thinc.util import is_xp_array, to_numpy

from spacy_distil.distillation.pipeline.corpus import original_of
from spacy_distil.distillation.pipeline.labels import is_encoder, kind_of
from spacy_distil.distillation.pipeline.language import tokenizer_to_bytes
from spacy_distil.errors import ConfigError
from spacy_distil.text.docs import further_texts

DIGEST_SIZE = 16
# Attributes that using a model changes: spaCy's transition models set dropout to 0 to predict.
VOLATILE_ATTRS = ("dropout_rate",)
# The path that spacy-transformers loaded its config from: a temporary directory of this process.
VOLATILE_SETTINGS = ("_name_or_path",)


def fingerprint_pipeline(nlp: Language) -> str:
    """Return a digest of a pipeline.

    It covers the active pipes in their order, with names, configs and everything that they have
    learned, the tokenizer, and the vectors and tables of the vocab. Of a tokenizer that cannot be
    saved, it covers the class alone. Of components of no known kind it covers the code, too, if
    that is the user's own. Saving, loading and using a pipeline do not change it. A change of any
    weight does.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    configs = nlp.config["components"]
    _feed(digest, [nlp.lang, nlp.config["nlp"]["tokenizer"]])
    _feed(digest, _tokenizer(nlp))
    for name, pipe in nlp.pipeline:
        _feed(digest, [name, configs.get(name, {})])
        model = getattr(pipe, "model", None)
        if isinstance(model, Model):
            _feed(digest, _learned(model))
        if hasattr(pipe, "to_bytes"):
            _feed(digest, pipe.to_bytes(exclude=["vocab", "model"]))
        if kind_of(pipe) is None and not is_encoder(pipe):
            _feed(digest, _own_code(pipe))
    vectors = nlp.vocab.vectors
    _feed(digest, vectors.to_bytes(exclude=["strings", "vectors"]))
    _feed(digest, getattr(vectors, "data", None))  # `to_bytes` would copy all of it
    _feed(digest, nlp.vocab.lookups.to_bytes())
    return digest.hexdigest()


def fingerprint_docs(docs: Iterable[Doc]) -> str:
    """Return a digest of the words of each doc, their norms, and the spaces between them.

    It changes with the tokenization of the same text, and with the docs that the words are in, and
    covers the originals of translations, and the further texts that pipes read.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for doc in docs:
        digest.update(len(doc).to_bytes(8, "little"))
        digest.update(
            np.ascontiguousarray(doc.to_array(["ORTH", "NORM", "SPACY"]), dtype="<u8").data
        )
        if (original := original_of(doc)) is not None:
            _feed(digest, original)
        if texts := further_texts(doc):
            _feed(digest, texts)
    return digest.hexdigest()


def _tokenizer(nlp: Language) -> Any:
    """Return the state of a tokenizer, or its class if it cannot be saved.

    No student takes such a tokenizer, so nothing that the teacher records depends on it.
    """
    try:
        return _unpacked(tokenizer_to_bytes(nlp, owner="teacher"))
    except ConfigError:
        kind = type(nlp.tokenizer)
        return [kind.__module__, kind.__qualname__]


def _own_code(component: Any) -> str | None:
    """Return the code of a component without comments: the file that it is in.

    Word lists and rules may stand anywhere in the file. A program that is running has other things
    in it, so there the component's own lines count.
    RETURNS: None if the code is part of an installed package, or is in no file.
    """
    while isinstance(component, partial):
        component = component.func
    code = component if inspect.isroutine(component) else type(component)
    # Of a class from a file of --code, Python knows no file: of its methods it does.
    methods = filter(inspect.isfunction, vars(code).values()) if inspect.isclass(code) else ()
    files = [_file_of(code), *map(_file_of, methods)]
    path = next(filter(None, files), None)
    if path is None or {"site-packages", "dist-packages"} & {*path.parts}:
        return None
    source = path.read_text(encoding="utf8")
    if code.__module__ == "__main__":
        with suppress(OSError):  # it has no lines of its own
            source = inspect.getsource(code)
    try:
        return ast.dump(ast.parse(dedent(source)))
    except SyntaxError:  # lines that do not stand by themselves, such as a lambda's
        return source


def _file_of(code: Any) -> Path | None:
    """Return the Python file of a function or a class, if there is one."""
    try:
        path = Path(inspect.getsourcefile(code) or "")
    except (OSError, TypeError):
        return None
    return path if path.is_file() else None


def _learned(model: Model) -> dict[str, Any]:
    """Return a model as thinc saves it, without values that change from process to process."""
    saved = model.to_dict()
    return {
        **saved,
        "attrs": [
            {name: value for name, value in attrs.items() if name not in VOLATILE_ATTRS}
            for attrs in saved["attrs"]
        ],
        "shims": [[_unpacked(data) for data in shims] for shims in saved["shims"]],
    }


def _unpacked(data: bytes) -> Any:
    """Unpack the bytes that a shim saves, if they are a dict.

    In the bytes, the order of a tokenizer's files depends on the file system.
    """
    try:
        saved = srsly.msgpack_loads(data)
    except ValueError:
        return data
    if not isinstance(saved, dict):
        return data
    if isinstance(saved.get("config"), dict):
        config = saved["config"].items()
        saved["config"] = {name: value for name, value in config if name not in VOLATILE_SETTINGS}
    return saved


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    """Add a value with its type and size, so no two values add the same bytes.

    Dicts are sorted. Arrays are not copied.
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
