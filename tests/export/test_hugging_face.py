"""`convert` of models of transformers, to the saved and the quantized pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from safetensors.torch import load_file, save_file
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.engines.fused import library
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.export import hugging_face_check
from spacy_distil.export.hugging_face import convert_model, convert_model_and_quantize
from spacy_distil.hugging_face import load_classifier
from tests.hugging_face.models import (
    FAMILIES,
    ODD,
    long_text,
    write_dense,
    write_model,
    write_modules,
)
from tests.test_light_import import run_python
from tests.util import SENTENCES, encoder_of, write_encoder

TOKENS, TEXTS = "TokenClassification", "SequenceClassification"
IOB = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CLASSES = ["bad", "good", "neither"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents of all kinds; the last one is longer than a window."""
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text}) for text in (*SENTENCES, *ODD, long_text())]
    path.write_text("\n".join(lines), encoding="utf8")
    return path


def run(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(distil_cli, ["convert", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "labels"), [(TOKENS, IOB), (TEXTS, CLASSES)])
def test_models_of_all_families(
    kind: str, labels: list[str], family: str, corpus: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path, family, kind, labels)
    scheme = "IOB2" if kind == TOKENS else None
    result = convert_model(model, tmp_path / "new", lang="en", corpus=corpus, scheme=scheme)
    check = result.check
    assert check.max_difference < 1e-4
    assert check.agreement == 1
    assert check.n_long == (1 if kind == TEXTS else 0)
    assert check.n_docs >= 10  # not those without pieces
    assert check.n >= check.n_docs
    nlp = spacy.load(tmp_path / "new")
    assert nlp.pipe_names == ["transformer", "ner" if kind == TOKENS else "textcat"]
    assert "spacy-distil[train]" in str(nlp.meta["requirements"])
    expected = load_classifier(model, "en", scheme)
    for text in SENTENCES:
        own, other = nlp(text), expected(text)
        assert [str(ent) for ent in own.ents] == [str(ent) for ent in other.ents]
        assert own.cats == pytest.approx(other.cats, abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "xlm-roberta"])
def test_encoders(family: str, corpus: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", family)
    result = convert_model(encoder, tmp_path / "new", lang="xx", corpus=corpus, window=24)
    assert result.pipes == {"transformer": "distil_transformer"}
    assert result.check.outputs == "vectors"
    assert result.check.max_difference < 1e-4
    assert result.check.n > 250  # the long document, too
    nlp = spacy.load(tmp_path / "new")
    assert encoder_of(nlp).loaded.window == 24
    doc = nlp("Ann visited Rome")
    assert doc.has_vector
    assert doc.tensor.shape == (3, encoder_of(nlp).width)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
@pytest.mark.parametrize("modules", [(), ("Normalize",), ("Dense", "Dense", "Normalize")])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_sentence_encoders(
    mode: str, modules: tuple[str, ...], family: str, corpus: Path, tmp_path: Path
) -> None:
    model = write_encoder(tmp_path / "model", family)
    write_modules(model, "Transformer", "Pooling", *modules, **{f"pooling_mode_{mode}": True})
    dense = []
    if "Dense" in modules:
        dense = [write_dense(model, "2_Dense", 32, 48), write_dense(model, "3_Dense", 48, 8)]
    result = convert_model(model, tmp_path / "new", lang="en", corpus=corpus)
    assert result.check.max_difference < 1e-5
    assert (result.check.unit, result.check.outputs) == ("documents", "vectors")
    # By the classes of transformers alone, for a text with no words, too.
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    reference = transformers.AutoModel.from_pretrained(model).eval()
    nlp = spacy.load(tmp_path / "new")
    for text in (*SENTENCES, " "):
        with torch.inference_mode():
            states = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            pools = {"cls_token": states[0], "mean_tokens": states.mean(dim=0)}
            vector = pools.get(mode, states.max(dim=0).values)
            for weight, bias in dense:
                vector = torch.tanh(torch.from_numpy(weight) @ vector + torch.from_numpy(bias))
            if "Normalize" in modules:
                vector = torch.nn.functional.normalize(vector, dim=0)
        np.testing.assert_allclose(nlp(text).vector, vector.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "kind", "labels", "settings"),
    [
        ("bert", TOKENS, IOB, {}),
        ("xlm-roberta", TOKENS, ["NOUN", "VERB", "X"], {}),
        ("roberta", TEXTS, CLASSES, {}),
        ("distilbert", TEXTS, CLASSES, {"problem_type": "multi_label_classification"}),
        ("electra", TEXTS, CLASSES, {}),
    ],
)
def test_quantized(
    family: str, kind: str, labels: list[str], settings: Any, corpus: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path, family, kind, labels, **settings)
    conversion, quantization = convert_model_and_quantize(
        model, tmp_path / "new", lang="en", corpus=corpus
    )
    assert conversion.check.agreement == 1
    assert quantization.agreement.lowest is not None
    assert quantization.agreement.lowest.agreement > 0.9
    vectors = quantization.agreement.vectors
    assert vectors is not None
    assert vectors.cosine > 0.99
    assert [path.name for path in (tmp_path / "new").rglob("*.onnx")] == ["model.onnx"]
    assert not list((tmp_path / "new").rglob("*.safetensors"))
    # In the compiled code, alone and beside others, and in ONNX Runtime.
    nlp = spacy.load(tmp_path / "new")
    inputs = [*SENTENCES, *ODD, long_text(), ""]
    alone = [nlp(text) for text in inputs]
    for one, other in zip(alone, nlp.pipe(inputs), strict=True):
        assert np.allclose(one.tensor, other.tensor, atol=1e-4)
        assert [str(ent) for ent in one.ents] == [str(ent) for ent in other.ents]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "labels"), [(TOKENS, IOB), (TEXTS, CLASSES)])
def test_the_quantized_pipeline_needs_no_torch(
    kind: str, labels: list[str], corpus: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path, "xlm-roberta", kind, labels)
    convert_model_and_quantize(model, tmp_path / "new", lang="en", corpus=corpus)
    output = run_python(
        f"""
        import spacy

        nlp = spacy.load({str(tmp_path / "new")!r})
        for doc in nlp.pipe({[*SENTENCES, *ODD]!r}):
            print([str(ent) for ent in doc.ents], max(doc.cats, key=doc.cats.get, default=None))
        print(sorted(set(sys.modules) & {{"torch", "transformers"}}))
        """,
        block=True,
    )
    *predicted, heavy = output.splitlines()
    assert heavy == "[]"
    nlp = spacy.load(tmp_path / "new")
    assert predicted == [
        f"{[str(ent) for ent in doc.ents]} "
        f"{max(doc.cats, key=lambda label: doc.cats[label], default=None)}"
        for doc in nlp.pipe([*SENTENCES, *ODD])
    ]


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
@pytest.mark.parametrize("fused", ["0", "1"])
def test_vectors_of_texts_in_both_runtimes(
    mode: str, fused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders that the compiled code takes, with vectors of docs behind the ones of tokens."""
    encoder = write_encoder(tmp_path / "encoder", "bert", width=64)
    write_modules(encoder, "Transformer", "Pooling", **{f"pooling_mode_{mode}": True})
    convert_model_and_quantize(encoder, tmp_path / "new", lang="en")
    original = load_classifier(encoder, "en")
    monkeypatch.setenv("SPACY_DISTIL_FUSED", fused)
    nlp = spacy.load(tmp_path / "new")
    engine: Any = encoder_of(nlp).engine
    is_fused = fused == "1" and library.load() is not None
    assert engine.runtime == ("fused" if is_fused else "onnxruntime")
    texts = (*SENTENCES, *ODD, long_text())
    for text, doc in zip(texts, nlp.pipe(texts), strict=True):
        assert doc.tensor.shape == (len(doc), 64)
        for own, other in ((doc, original(text)), (doc, nlp(text))):
            assert np.linalg.norm(own.vector) > 0
            assert own.similarity(other) > 0.99


def test_a_model_that_is_computed_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if transformers had another forward than its config says."""
    model = write_model(tmp_path, "bert", TEXTS, CLASSES)
    load = hugging_face_check.load_head_model

    def changed(description: Any) -> Any:
        loaded = load(description)
        with torch.no_grad():
            loaded.classifier.bias += 0.01
        return loaded

    monkeypatch.setattr(hugging_face_check, "load_head_model", changed)
    with pytest.raises(ConfigError, match=r"logits differ .*0\.01.*Nothing was written"):
        convert_model(model, tmp_path / "new", lang="en")
    assert not (tmp_path / "new").exists()


def test_agreement_that_is_too_low() -> None:
    check = hugging_face_check.ModelCheck(
        "texts", 10, 0, 0, "logits", "tokens", 100, 5.0, 1e-5, 0.97, 0
    )
    assert check.find_problem(0.97) is None
    problem = check.find_problem(0.98)
    assert problem is not None
    assert "97.00% of 100 tokens" in problem


def test_documents_without_text_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", TEXTS, CLASSES)
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": long_text()}))
    with pytest.raises(CorpusError, match="None of the documents"):
        convert_model(model, tmp_path / "new", lang="en", corpus=tmp_path / "long.jsonl")


def test_pieces_that_transformers_splits_otherwise_are_counted(tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", TOKENS, IOB)
    texts = ["A literal [SEP] is text.", "Ann visited Rome."]
    nlp = spacy.blank("en")
    DocBin(docs=[nlp.make_doc(text) for text in texts]).to_disk(tmp_path / "texts.spacy")
    corpus = tmp_path / "texts.spacy"
    check = convert_model(model, tmp_path / "new", lang="en", corpus=corpus).check
    assert (check.n_docs, check.n_other_pieces) == (2, 1)
    assert "documents in other pieces" in hugging_face_check.to_text(check)


def test_the_command(corpus: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", TOKENS, IOB)
    code, output = run(model, tmp_path / "new")
    assert (code, "--lang" in output) == (1, True)
    code, output = run(model, tmp_path / "new", "--lang", "en", "--corpus", corpus, "--limit", 5)
    assert code == 0, output
    assert "documents 5" in output
    assert "the same label 100.00%" in output
    assert "ner (distil_ner)" in output
    assert "convert the model with" in output
    code, output = run(model, tmp_path / "new", "--lang", "en")
    assert (code, "--force" in output) == (1, True)
    code, output = run(
        model, tmp_path / "new", "--lang", "en", "--force", "--scheme", "IOB1", "--quantize",
        "--window", 32,
    )  # fmt: skip
    assert code == 0, output
    assert "== Quantized ==" in output
    assert "convert the model with" not in output
    nlp = spacy.load(tmp_path / "new")
    assert nlp.get_pipe("ner").scheme == "IOB1"  # type: ignore[attr-defined]
    assert encoder_of(nlp).loaded.window == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trf-data", "--lang", "en"], "--trf-data: only for a spaCy pipeline"),
        (["--no-private-copies", "--lang", "en"], "only for a spaCy pipeline"),
        (["--lang", "en", "--scheme", "BILUO"], "fit IOB2 or IOB1"),
        (["--lang", "en", "--min-agreement", 2], "expected 0 to 1"),
        (["--lang", "en", "--window", 500], "at most 72 pieces"),
    ],
)
def test_options_that_do_not_fit(options: list[Any], message: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", TOKENS, IOB)
    code, output = run(model, tmp_path / "new", *options)
    assert code == 1
    assert message in output
    assert not (tmp_path / "new").exists()


def test_options_of_models_do_not_fit_pipelines(tmp_path: Path) -> None:
    nlp = load_classifier(write_model(tmp_path, "bert", TEXTS, CLASSES), "en")
    nlp.to_disk(tmp_path / "pipeline")
    code, output = run(tmp_path / "pipeline", tmp_path / "new", "--lang", "en")
    assert (code, "--lang: only for a model of transformers" in output) == (1, True)
    code, output = run("bert-base-sentiment", tmp_path / "new", "--lang", "en")
    assert (code, "owner/model" in output) == (1, True)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", TEXTS, CLASSES)
    path = model / "model.safetensors"
    weights = load_file(path)
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    code, output = run(model, tmp_path / "new", "--lang", "en")
    assert code == 1
    assert "not finite" in output
    assert "classifier.weight" in output
