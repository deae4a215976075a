from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc, DocBin
from thinc.api import NumpyOps, concatenate

from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.engines.files import CONFIG, GRAPH, TOKENIZER, longest_window
from spacy_distil.engines.onnx import SECTION
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.export.encoders import SourceEncoder, find_encoders
from spacy_distil.export.fallback import Int8Plan, measure_sensitivity
from spacy_distil.export.graph import Precision
from spacy_distil.export.quantize import quantize
from spacy_distil.export.quantize_page import make_page
from spacy_distil.pipelines import count_bytes
from spacy_distil.report.page import render
from spacy_distil.runs.digests import SUMS
from tests.report.markup import Markup
from tests.util import (
    SENTENCES,
    encoder_of,
    head_config,
    make_examples,
    make_nlp,
    random_text,
    torch_model_of,
    write_encoder,
)

ODD = ["", "  ", "\n \n", "Ann visited Rome .", "👩‍👩‍👧 🇳🇴 ok", *SENTENCES]


def contents(directory: Path) -> dict[str, bytes]:
    """All files under a directory, by relative path."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def shares(result: Any) -> dict[str, float]:
    return {one.annotation: one.agreement for one in result.agreement.measures}


def assert_same_predictions(left: Any, right: Any, *, cats: float = 0.02) -> None:
    """For docs like the training docs, and empty ones."""
    texts = ["", "  \n", *(each.text for each in make_examples(left, 20, start=200))]
    for a, b in zip(left.pipe(texts), right.pipe(texts), strict=True):
        assert [token.tag_ for token in a] == [token.tag_ for token in b]
        assert a.to_json()["ents"] == b.to_json()["ents"]
        assert a.cats == pytest.approx(b.cats, abs=cats)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Sixty texts, one a line."""
    lines = [random_text(random.Random(i), 12) for i in range(60)]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf8")
    return tmp_path / "texts.txt"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "quantized"


# Results


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotated docs that the pipelines have not seen, one of them of white space alone."""
    nlp = spacy.blank("en")
    docs = [each.reference for each in make_examples(nlp, 20, start=100)]
    docs += [Doc(nlp.vocab), Doc(nlp.vocab, words=[" \n "])]
    path = tmp_path_factory.mktemp("gold") / "dev.spacy"
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def test_int8(torch_pipeline: Path, gold: Path, output: Path) -> None:
    before = contents(torch_pipeline)
    lines: list[str] = []
    result = quantize(torch_pipeline, output, corpus=gold, log=lines.append)
    assert contents(torch_pipeline) == before
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert lines[:2] == [f"Loading {torch_pipeline}", "Making the graph: int8"]

    found = result.agreement
    assert shares(result) == dict.fromkeys(
        ("token.tag", "token.ent_iob+type", "doc.ents", "doc.cats"), 1.0
    )
    assert found.vectors is not None
    assert 1e-4 < found.vectors.max < 0.2
    # Alone as in a batch.
    assert found.candidate_vectors_alone is not None
    assert found.candidate_vectors_alone.max == 0.0
    assert {one.candidate_alone for one in found.measures} == {1.0}
    assert found.n_docs == 21
    for scores in (found.original_scores, found.candidate_scores):
        assert min(scores[key] for key in ("tag_acc", "ents_f", "cats_macro_f")) > 0.9
    assert found.candidate_bytes == pytest.approx(count_bytes(output), rel=0.01)
    assert (result.precision, result.documents) == ("int8", str(gold))
    assert (result.fp32_layers, result.sensitivity) == ({"transformer": []}, {})
    assert json.loads(json.dumps(result.to_dict()))["agreement"]["lowest"]["agreement"] == 1.0

    loaded = spacy.load(output)
    assert loaded.meta["performance"] == pytest.approx(found.candidate_scores)
    assert_same_predictions(spacy.load(torch_pipeline), loaded)
    assert loaded.config["components"]["transformer"]["model"]["engine"] == "onnx"
    assert [each for each in loaded.meta["requirements"] if "distil" in each] == [
        "spacy-distil>=0.1.0,<0.2.0"
    ]
    files = contents(output / "transformer")
    assert files.keys() == {CONFIG, GRAPH, TOKENIZER, SUMS}
    section = json.loads(files[CONFIG])[SECTION]
    assert section.pop("checked_on") == result.cpu
    assert section == {
        "format": 2,
        "width": 32,
        "n_parameters": encoder_of(spacy.load(torch_pipeline)).n_parameters,
        "int8_layers": [0, 1],
        "embedding_bits": 8,
        "reduced_range": False,
    }
    # Everything else is as it was.
    mine = {name: text for name, text in contents(output).items() if "transformer/" not in name}
    theirs = {name: text for name, text in before.items() if "transformer/" not in name}
    for name in ("config.cfg", "meta.json"):
        del mine[name], theirs[name]
    assert mine == theirs
    original = spacy.load(torch_pipeline).config
    original["components"]["transformer"]["model"]["engine"] = "onnx"
    assert loaded.config == original


def test_fp32(torch_pipeline: Path, gold: Path, output: Path) -> None:
    result = quantize(torch_pipeline, output, precision="fp32", corpus=gold, min_agreement=1.0)
    assert set(shares(result).values()) == {1.0}
    assert result.agreement.vectors is not None
    assert result.agreement.vectors.max < 1e-5
    original, loaded = spacy.load(torch_pipeline), spacy.load(output)
    assert_same_predictions(original, loaded, cats=1e-5)
    section = json.loads((output / "transformer" / CONFIG).read_text())[SECTION]
    assert (section["int8_layers"], section["embedding_bits"]) == ([], 32)


def test_reduced_range(torch_pipeline: Path, output: Path) -> None:
    result = quantize(torch_pipeline, output, reduced_range=True)
    assert result.reduced_range
    assert json.loads((output / "transformer" / CONFIG).read_text())[SECTION]["reduced_range"]
    assert_same_predictions(spacy.load(torch_pipeline), spacy.load(output), cats=0.05)


def test_embeddings_in_4_bits(torch_pipeline: Path, tmp_path: Path) -> None:
    sizes = {}
    for bits in (8, 4):
        result = quantize(torch_pipeline, tmp_path / str(bits), embedding_bits=bits)
        assert result.embedding_bits == bits
        encoder = tmp_path / str(bits) / "transformer"
        assert json.loads((encoder / CONFIG).read_text())[SECTION]["embedding_bits"] == bits
        sizes[bits] = (encoder / GRAPH).stat().st_size
    n_numbers = encoder_of(spacy.load(torch_pipeline)).engine.model.embeddings.word_embeddings
    assert 0 < n_numbers.weight.numel() / 2 - (sizes[8] - sizes[4]) < 1500  # a few more nodes
    assert_same_predictions(spacy.load(torch_pipeline), spacy.load(tmp_path / "4"), cats=0.1)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "deberta-v2"])
def test_positions_beyond_the_window_are_left_out(family: str, tmp_path: Path) -> None:
    nlp = make_nlp(write_encoder(tmp_path / "encoder", family), window=40, overlap=4)
    nlp.to_disk(tmp_path / "torch")
    quantize(tmp_path / "torch", tmp_path / "fp32", precision="fp32")
    fp32 = spacy.load(tmp_path / "fp32")
    encoder, original = encoder_of(fp32), encoder_of(nlp)
    text = " ".join(SENTENCES * 5)
    vectors = [each(text).tensor for each in (nlp, fp32)]
    np.testing.assert_allclose(vectors[1], vectors[0], rtol=0, atol=1e-5)
    n_dropped = original.n_parameters - encoder.n_parameters
    if family in ("mpnet", "deberta-v2"):  # whose attention looks at positions, too
        assert n_dropped == 0
        return
    n_positions = longest_window(json.loads(original.to_files()[CONFIG]))
    assert n_dropped == (n_positions - 40) * encoder.width
    with pytest.raises(ConfigError, match="takes at most 40 pieces"):
        spacy.load(tmp_path / "fp32", config={"components.transformer.model.window": 41})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_bits": 3}, "embedding_bits = 3: expected 8 or 4"),
        ({"embedding_bits": 4, "precision": "fp32"}, "rounded only in int8"),
    ],
)
def test_bits_that_cannot_be(
    options: dict[str, Any], message: str, torch_pipeline: Path, output: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(torch_pipeline, output, **options)
    assert not output.exists()


def test_documents_are_text_or_those_of_spacy(
    torch_pipeline: Path, texts: Path, output: Path
) -> None:
    told: list[str] = []
    result = quantize(
        torch_pipeline, output, corpus=texts, limit=7, min_agreement=0.9, log=told.append
    )
    assert result.agreement.n_docs == 7
    assert any(line.startswith(f"{texts}: 7 documents, each line is one") for line in told)
    result = quantize(
        torch_pipeline, output, corpus=texts, min_agreement=0.5, prune_vocab=texts,
        txt_documents="blank_lines", force=True, log=told.append,
    )  # fmt: skip
    assert result.agreement.n_docs == 1
    assert sum("1 document, divided by blank lines" in line for line in told) == 2
    result = quantize(torch_pipeline, output, corpus=texts, limit=7, min_agreement=0.9, force=True)
    assert result.agreement.original_scores == {}
    result = quantize(torch_pipeline, output, force=True)
    assert result.documents == "spaCy's example sentences"
    assert result.agreement.n_docs > 4


@pytest.mark.slow
def test_an_encoder_by_itself(bert_dir: Path, texts: Path, tmp_path: Path, output: Path) -> None:
    make_nlp(bert_dir).to_disk(tmp_path / "torch")
    with pytest.raises(
        ConfigError, match=r"Token vectors agree .* cosine of 0\.9999\d\d; expected at least 1"
    ):
        quantize(tmp_path / "torch", output, corpus=texts, min_agreement=1.0)
    result = quantize(tmp_path / "torch", output, corpus=texts, min_agreement=0.999)
    assert result.agreement.measures == []
    for a, b in zip(
        spacy.load(tmp_path / "torch").pipe(SENTENCES),
        spacy.load(output).pipe(SENTENCES),
        strict=True,
    ):
        np.testing.assert_allclose(a.tensor, b.tensor, atol=0.2)
        assert np.abs(a.tensor - b.tensor).max() > 1e-4


# Encoders inside pipes


def test_encoders_inside_pipes(torch_pipeline: Path, tmp_path: Path, output: Path) -> None:
    nlp: Any = spacy.load(torch_pipeline)
    nlp.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "replaced")
    assert find_encoders(nlp).keys() == {"transformer", "tagger"}
    result = quantize(tmp_path / "replaced", output)
    assert result.fp32_layers == {"transformer": [], "tagger": []}
    loaded: Any = spacy.load(output)
    assert {shim.settings.engine for shim in find_encoders(loaded).values()} == {"onnx"}
    assert loaded.config["components"]["tagger"]["model"]["tok2vec"]["engine"] == "onnx"
    assert_same_predictions(nlp, loaded)
    # It goes through a head's own way of saving, too.
    other: Any = spacy.blank("en").from_config(loaded.config)
    assert_same_predictions(loaded, other.from_bytes(loaded.to_bytes()), cats=1e-6)


def test_a_pipeline_whose_only_encoder_is_inside_a_pipe(
    bert_dir: Path, tmp_path: Path, output: Path
) -> None:
    nlp = spacy.blank("en")
    encoder = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(bert_dir)}
    nlp.add_pipe("tagger", config=head_config("tagger", encoder))
    optimizer = nlp.initialize(lambda: make_examples(nlp))
    for _ in range(10):
        nlp.update(make_examples(nlp), sgd=optimizer)
    nlp.to_disk(tmp_path / "torch")
    result = quantize(tmp_path / "torch", output, min_agreement=0.9)
    assert result.agreement.vectors is None
    loaded = spacy.load(output)
    tags = [[[t.tag_ for t in doc] for doc in each.pipe(SENTENCES)] for each in (nlp, loaded)]
    assert np.mean(np.concatenate(tags[0]) == np.concatenate(tags[1])) > 0.9


def test_names_of_encoders(bert_dir: Path) -> None:
    nlp = spacy.blank("en")
    pipe: Any = nlp.add_pipe("tagger", name="my tagger")
    first, second = (DistilTransformer(str(bert_dir)) for _ in range(2))
    pipe.model = concatenate(first, second)
    found = find_encoders(nlp)
    assert list(found) == ["my tagger", "my tagger 2"]
    assert list(found.values()) == [first.shims[0], second.shims[0]]


# Layers in float32


def spoil(nlp: Any, layer: int) -> None:
    """Without any effect on what a layer computes, make int8 lose most of its attention.

    One number is divided by a large factor before a product and multiplied by it in the product's
    weights, which then decide over the steps of all columns.
    """
    model: Any = torch_model_of(nlp)
    attention = model.encoder.layer[layer].attention
    with torch.no_grad():
        attention.self.value.weight[0] /= 1e4
        attention.self.value.bias[0] /= 1e4
        attention.output.dense.weight[:, 0] *= 1e4


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of four layers, the third of which loses much in int8."""
    root = tmp_path_factory.mktemp("sensitive")
    nlp = make_nlp(write_encoder(root / "encoder", "bert", layers=4), ["tagger"])
    docs = [nlp(text).tensor for text in SENTENCES]
    spoil(nlp, 2)
    for text, tensor in zip(SENTENCES, docs, strict=True):
        np.testing.assert_allclose(nlp(text).tensor, tensor, atol=1e-4)
    nlp.to_disk(root / "pipeline")
    return root / "pipeline"


@pytest.mark.slow
def test_the_layer_that_loses_most_stays_in_float32(
    sensitive: Path, texts: Path, output: Path
) -> None:
    lines: list[str] = []
    result = quantize(sensitive, output, corpus=texts, min_agreement=0.95, log=lines.append)
    assert result.fp32_layers == {"transformer": [2]}
    page = make_page(result, pipeline=str(sensitive), warnings=["Look here."])
    html = Markup(render(page))
    label = "Error of the token vectors of transformer by layer"
    assert [values["aria-label"] for tag, values in html.elements if tag == "svg"] == [label]
    assert "Error of the token vectors with one layer in int8" in html.texts
    assert "Look here." in html.texts
    errors = result.sensitivity["transformer"]
    assert errors[2] > 100 * max(errors[:2] + errors[3:])
    assert "Making the graph: int8, except for layers (transformer: 2)" in lines
    assert any(line.startswith("'tagger' agrees with the original in 8") for line in lines)
    section = json.loads((output / "transformer" / CONFIG).read_text())[SECTION]
    assert section["int8_layers"] == [0, 1, 3]
    (agreement,) = shares(result).values()
    assert agreement > 0.95


@pytest.mark.parametrize("force", [False, True])
def test_what_agrees_too_little_is_not_written(
    sensitive: Path, texts: Path, output: Path, force: bool
) -> None:
    if force:
        output.mkdir()
        (output / "meta.json").write_text("{}")
    before = contents(output.parent)
    message = (
        r"'tagger' agrees with the original in 8\d\.\d\d% of token\.tag \(907 tokens\); expected "
        r"at least 95\.00% \(--min-agreement\)\. Nothing was written\. "
        r"Raise --max-fp32-layers, or use --precision fp32\."
    )
    settings: Any = {"corpus": texts, "min_agreement": 0.95, "force": force}
    with pytest.raises(ConfigError, match=message):
        quantize(sensitive, output, max_fp32_layers=0, **settings)
    assert contents(output.parent) == before
    assert [path.name for path in output.parent.iterdir()] == [output.name] * force


@pytest.mark.parametrize(("most", "n_tries"), [(None, 3), (1, 2)])
def test_no_more_layers_than_allowed_stay_in_float32(
    sensitive: Path, texts: Path, tmp_path: Path, output: Path, most: int | None, n_tries: int
) -> None:
    """One after the other, none twice; half of them where nothing is said."""
    nlp = spacy.load(sensitive)
    for layer in (0, 3):
        spoil(nlp, layer)
    nlp.to_disk(tmp_path / "worse")
    lines: list[str] = []
    with pytest.raises(ConfigError, match="Nothing was written"):
        quantize(tmp_path / "worse", output, corpus=texts, max_fp32_layers=most, log=lines.append)
    made = [line for line in lines if line.startswith("Making the graph")]
    assert len(made) == n_tries
    kept = [set(re.findall(r"\d", line.removeprefix("Making the graph: int8"))) for line in made]
    assert [len(layers) for layers in kept] == list(range(n_tries))
    assert kept[-1] < {"0", "2", "3"}


def test_sensitivity_is_that_of_one_layer_in_int8(sensitive: Path) -> None:
    nlp = spacy.load(sensitive)
    encoder = SourceEncoder(encoder_of(nlp))
    docs = [nlp.make_doc(text) for text in ODD]
    exact = np.concatenate([doc.tensor for doc in nlp.pipe(ODD) if len(doc)]).astype("d")
    for reduced_range in (False, True):
        found = measure_sensitivity(encoder, docs, reduced_range=reduced_range)
        for layer, error in enumerate(found):
            shim = encoder.to_shim(Precision(frozenset({layer}), reduced_range=reduced_range))
            vectors: list[Any] = [*shim.predict_docs(docs, NumpyOps())]
            expected = ((np.concatenate(vectors) - exact) ** 2).sum() / (exact**2).sum()
            assert error == pytest.approx(expected, rel=0.01)
    # Nothing to measure on: no layer is more sensitive than another.
    assert measure_sensitivity(encoder, [nlp.make_doc(" ")]) == [0.0] * 4


def test_plan(bert_dir: Path, sensitive: Path) -> None:
    nlp = spacy.load(sensitive)
    encoders = {
        "four": SourceEncoder(encoder_of(nlp)),
        "two": SourceEncoder(encoder_of(make_nlp(bert_dir))),
    }
    docs = [nlp.make_doc(text) for text in SENTENCES]
    plan = Int8Plan(encoders, reduced_range=True)
    assert str(plan) == "int8"
    assert plan.precision("four") == Precision(
        frozenset(range(4)), embeddings=True, reduced_range=True
    )
    assert not plan.can_fall_back(0)
    counts = []
    while plan.can_fall_back(None):
        plan.fall_back(docs, None)
        counts.append({place: len(layers) for place, layers in plan.fp32_layers.items()})
    assert counts == [{"four": 1, "two": 1}, {"four": 2, "two": 1}]
    assert plan.fp32_layers["four"][0] == 2
    assert plan.precision("four").layers == {0, 1, 2, 3} - {*plan.fp32_layers["four"]}
    assert plan.can_fall_back(3)


# Vocabulary


def test_a_pruned_vocabulary(torch_pipeline: Path, texts: Path, output: Path) -> None:
    result = quantize(
        torch_pipeline, output, precision="fp32", corpus=texts, prune_vocab=texts,
        min_agreement=1.0,
    )  # fmt: skip
    pruning = result.pruning
    assert pruning is not None
    assert pruning.n_after < pruning.n_before
    # Seen texts are encoded as before.
    assert (pruning.loss.changed, set(shares(result).values())) == (0.0, {1.0})
    original, loaded = (encoder_of(spacy.load(path)) for path in (torch_pipeline, output))
    assert original.loaded.tokenizer.largest_id + 1 == pruning.n_before
    assert loaded.loaded.tokenizer.largest_id + 1 == pruning.n_after
    dropped = 32 * (pruning.n_before - pruning.n_after)
    assert loaded.n_parameters == original.n_parameters - dropped
    assert (output / "transformer" / GRAPH).stat().st_size < original.n_parameters * 4
    # Unseen text still has vectors.
    for doc in spacy.load(output).pipe(["Quixotic zebras vexed Jack!", *ODD]):
        assert [bool(vector.any()) for vector in doc.tensor] == [
            not token.is_space for token in doc
        ]


def test_size_of_the_vocabulary(torch_pipeline: Path, texts: Path, output: Path) -> None:
    few = texts.parent / "few.txt"
    few.write_text("We like Rome.")
    n_pieces = encoder_of(spacy.load(torch_pipeline)).loaded.tokenizer.largest_id + 1
    result = quantize(
        torch_pipeline, output, corpus=texts, prune_vocab=few, vocab_size=n_pieces - 50,
        min_agreement=0.5,
    )  # fmt: skip
    assert result.pruning is not None
    assert result.pruning.n_after == n_pieces - 50
    with pytest.raises(ConfigError, match="name documents with that option too"):
        quantize(torch_pipeline, output, vocab_size=100, force=True)
    with pytest.raises(ConfigError, match="expected at least"):
        quantize(torch_pipeline, output, prune_vocab=few, vocab_size=3, force=True)


def test_encoders_of_different_vocabularies_are_not_pruned(
    encoder_dirs: dict[str, Path], texts: Path, tmp_path: Path, output: Path
) -> None:
    nlp = make_nlp(encoder_dirs["bert"])
    encoder = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(encoder_dirs["roberta"]),
    }
    nlp.add_pipe("tagger", config=head_config("tagger", encoder))
    nlp.initialize(lambda: make_examples(nlp))
    nlp.to_disk(tmp_path / "torch")
    with pytest.raises(ConfigError, match="different vocabularies"):
        quantize(tmp_path / "torch", output, prune_vocab=texts)
    assert not output.exists()


# Refusals


def _not_ours(path: Path) -> Path:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(path)
    return path


def test_what_is_no_pipeline_of_ours_is_refused(
    torch_pipeline: Path, onnx_pipeline: Path, tmp_path: Path, output: Path
) -> None:
    cases: list[tuple[Path, str]] = [
        (onnx_pipeline, r"'transformer' in .*onnx runs on ONNX Runtime already"),
        (
            _not_ours(tmp_path / "splitter"),
            r"no encoder of spacy-distil \(its pipes: sentencizer\)",
        ),
        (torch_pipeline / "transformer", "is a model of transformers, and no spaCy pipeline"),
        (tmp_path / "none", "No pipeline"),
    ]
    for pipeline, message in cases:
        with pytest.raises(ConfigError, match=message):
            quantize(pipeline, output)
        assert not output.exists()


def _make_silu(directory: Path) -> None:
    path = directory / "transformer" / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"silu"'))
    (path.parent / SUMS).unlink()


def test_an_encoder_that_has_no_graph_is_refused(
    torch_pipeline: Path, tmp_path: Path, output: Path
) -> None:
    spacy.load(torch_pipeline).to_disk(tmp_path / "silu")
    _make_silu(tmp_path / "silu")
    with pytest.raises(ConfigError, match="activation 'silu'"):
        quantize(tmp_path / "silu", output)
    assert not output.exists()


def test_a_pipeline_is_replaced_by_force_alone(
    torch_pipeline: Path, tmp_path: Path, output: Path
) -> None:
    _not_ours(output)
    before = contents(output)
    with pytest.raises(ConfigError, match=r"exists\. Choose another directory"):
        quantize(torch_pipeline, output)
    assert contents(output) == before
    quantize(torch_pipeline, output, force=True)
    assert spacy.load(output).pipe_names == ["transformer", "tagger", "ner", "textcat"]
    assert not (output / "sentencizer").exists()
    with pytest.raises(ConfigError, match="is the pipeline itself"):
        quantize(torch_pipeline, torch_pipeline, force=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"precision": "int4"}, ConfigError, "precision = 'int4': expected one of int8, fp32"),
        ({"min_agreement": 98}, ConfigError, "min_agreement = 98: expected 0 to 1"),
        ({"batch_size": 0}, ConfigError, "batch_size = 0: expected at least 1"),
        ({"limit": -1, "corpus": Path("none.txt")}, ConfigError, "limit = -1"),
        ({"corpus": Path("none.txt")}, CorpusError, r"No documents at none\.txt"),
        ({"corpus": Path("none.spacy")}, CorpusError, r"none\.spacy"),
        (
            {"prune_vocab": Path("none.txt")},
            CorpusError,
            r"--prune-vocab: none\.txt does not exist",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(
    torch_pipeline: Path,
    output: Path,
    settings: dict[str, Any],
    error: Callable[..., Any],
    message: str,
) -> None:
    with pytest.raises(error, match=message):  # type: ignore[call-overload]
        quantize(torch_pipeline, output, **settings)
    assert not output.exists()
