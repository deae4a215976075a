"""Encoders with windows so short that few docs fit into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spacy_distil.export.encoders import SourceEncoder, replace_encoders
from spacy_distil.export.graph import Precision
from tests.util import LAYERS, LISTENER, add_heads, encoder_of, initialize_nlp, make_nlp

ENGINES = ("torch", "int8")
WINDOW, OVERLAP = 16, 5
INT8 = Precision(frozenset(range(LAYERS)), embeddings=True)


class Pipelines(dict[tuple[str, str], Any]):
    """Makes the pipeline of a family and an engine, with only an encoder, at first use."""

    def __init__(self, directories: dict[str, Path]) -> None:
        super().__init__()
        self.directories = directories

    def __missing__(self, key: tuple[str, str]) -> Any:
        family, engine = key
        nlp = make_nlp(self.directories[family], window=WINDOW, overlap=OVERLAP)
        self[key] = nlp if engine == "torch" else to_int8(nlp)
        return self[key]


def to_int8(nlp: Any) -> Any:
    """Put the encoder on ONNX Runtime, in int8."""
    replace_encoders(nlp, {"transformer": SourceEncoder(encoder_of(nlp)).to_shim(INT8)})
    return nlp


@pytest.fixture(scope="session")
def pipelines(encoder_dirs: dict[str, Path]) -> Pipelines:
    """Return pipelines with only an encoder, by family and engine."""
    return Pipelines(encoder_dirs)


@pytest.fixture(scope="session", params=ENGINES)
def annotating(request: pytest.FixtureRequest, bert_dir: Path) -> Any:
    """Make a pipeline whose heads have random weights, and predict anything."""
    nlp = make_nlp(bert_dir, initialize=False, window=WINDOW, overlap=OVERLAP)
    add_heads(nlp, ["tagger"])
    head = {"@architectures": "spacy.Tagger.v2", "tok2vec": dict(LISTENER)}
    nlp.add_pipe("distil_ner", config={"model": head})
    add_heads(nlp, ["textcat"])
    initialize_nlp(nlp)
    return nlp if request.param == "torch" else to_int8(nlp)
