from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from spacy.tokens import DocBin
from thinc.api import NumpyOps

from benchmarks.int8.__main__ import the_encoder
from benchmarks.int8.graphs import ABOUT, make_shims
from benchmarks.int8.roofline import products_per_word
from spacy_distil.engines.files import GRAPH
from spacy_distil.engines.fused import library
from spacy_distil.errors import ConfigError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision
from tests.util import SENTENCES, encoder_of, make_nlp, write_encoder

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nlp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    encoder = write_encoder(tmp_path_factory.mktemp("encoder"), "bert", width=64)
    return make_nlp(encoder, ["tagger", "textcat"])


@pytest.fixture(scope="module")
def docs(nlp: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs") / "docs.spacy"
    DocBin(docs=[nlp.make_doc(text) for text in [*SENTENCES, "\n".join(SENTENCES)]]).to_disk(path)
    return path


@pytest.fixture(scope="module")
def saved(nlp: Any, docs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run. It has a process of its own, because it pins the process to a core."""
    path = tmp_path_factory.mktemp("int8")
    nlp.to_disk(path / "nlp")
    command = [sys.executable, "-m", "benchmarks.int8", str(path / "nlp"), str(docs)]
    command += ["--repeats", "2", "--profile", "--output", str(path / "out")]
    subprocess.run(command, cwd=REPO, check=True, timeout=300)
    return path / "out"


def test_operators(nlp: Any) -> None:
    source = SourceEncoder(encoder_of(nlp))
    shims, left_out = make_shims(source, threads=1)
    operators = {
        name: Counter(
            node.op_type for node in onnx.load_from_string(shim.to_files()[GRAPH]).graph.node
        )
        for name, shim in shims.items()
    }
    assert {*operators} | {*left_out} == {*ABOUT}
    assert {*left_out} <= {"8-bit weights", *(["int8 fused"] if library.load() is None else [])}
    n_layers = source.n_layers
    for name in ("fp32", "int8 by row"):
        # A layer has two residual sums. The normalization of the embeddings has none.
        assert operators[name]["LayerNormalization"] == 2 * n_layers + 1
        assert operators[f"{name}, joined"]["LayerNormalization"] == 1
        assert operators[f"{name}, joined"]["SkipLayerNormalization"] == 2 * n_layers
    # A layer has six matrix products, all in int8.
    assert operators["int8 by batch"]["MatMulInteger"] == 6 * n_layers
    assert not any(operators[name]["MatMul"] for name in ABOUT if "int8" in name)


@pytest.mark.slow
def test_whole_run(saved: Path) -> None:
    results = json.loads((saved / "int8.json").read_text(encoding="utf-8"))["results"]
    text = (saved / "int8.md").read_text(encoding="utf-8")
    for name, result in results.items():
        assert f"| {name} |" in text
        assert len(result["speeds"]) == 2
        if name != "int8 fused":
            assert sum(result["shares"].values()) == pytest.approx(1)
        assert {one["pipe"] for one in result["agreement"]["measures"]} == {"tagger", "textcat"}
    for name in ("fp32", "fp32, joined"):
        assert results[name]["error"] < 1e-9
        assert all(one["agreement"] == 1 for one in results[name]["agreement"]["measures"])
    # With a scale for each row, no doc depends on its batch. With one for each batch, all do.
    assert results["int8 by row"]["same_alone"] == 1
    assert results["int8 by batch"]["same_alone"] < 0.5
    assert 1e-9 < results["int8 by row"]["error"] < results["int8 by batch"]["error"] < 0.1
    assert results["int8 by row, joined"]["shares"]["SkipLayerNormalization"] > 0
    assert "SkipLayerNormalization" not in results["int8 by row"]["shares"]


@pytest.mark.slow
def test_error_is_relative_to_torch(nlp: Any, docs: Path, saved: Path) -> None:
    """Compute the figure of the table from the vectors of the two pipelines."""
    source = SourceEncoder(encoder_of(nlp))
    shim = source.to_shim(Precision(frozenset(range(source.n_layers)), embeddings=True))
    squares = np.zeros(2)
    for doc in DocBin().from_disk(docs).get_docs(nlp.vocab):
        vectors: Any = nlp(doc.text).tensor
        (rounded,) = shim.predict_docs([doc], NumpyOps())
        squares += [np.square(rounded - vectors).sum(), np.square(vectors).sum()]
    results = json.loads((saved / "int8.json").read_text(encoding="utf-8"))["results"]
    row = results.get("int8 fused", results["int8 by row"])
    assert row["error"] == pytest.approx(squares[0] / squares[1], 1e-3)


def test_products_are_those_of_the_layers(nlp: Any) -> None:
    source = SourceEncoder(encoder_of(nlp))
    docs = [nlp.make_doc(text) for text in SENTENCES]
    n_pieces = sum(len(pieces.ids) + 2 for pieces in source.shim.loaded.tokenizer(SENTENCES))
    # A layer has four matrices of 64 x 64, and two of 64 x 128.
    expected = 2 * (4 * 64 * 64 + 2 * 64 * 128) * n_pieces / sum(map(len, docs))
    assert products_per_word(source, docs) == expected


def test_takes_one_encoder_on_torch(nlp: Any) -> None:
    shim = encoder_of(nlp)
    assert the_encoder({"transformer": shim}) == ("transformer", shim)
    converted = SourceEncoder(shim).to_shim(Precision())
    for encoders in ({}, {"a": shim, "b": shim}, {"transformer": converted}):
        with pytest.raises(ConfigError, match="Expected one encoder, on the torch engine"):
            the_encoder(encoders)
