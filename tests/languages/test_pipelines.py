"""A pipeline in every language trains, is saved, quantized, packaged and predicts."""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import spacy.cli
import srsly
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import get_lang_class, load_config

from spacy_distil.component.nlp_config import TOKENIZERS, set_requirements
from spacy_distil.export.quantize import quantize
from tests.languages.texts import LANGUAGES, ODD, Language
from tests.languages.tokenizers import KINDS, write_encoder
from tests.util import LISTENER, adam, head_config

# Languages share the tokenizers out among them.
PAIRS = [(name, KINDS[i % len(KINDS)]) for i, name in enumerate(LANGUAGES)]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(root / kind, kind) for kind in KINDS}


def make_pipeline(language: Language, encoder: Path) -> Any:
    """An untrained pipeline with a tagger and distil_ner."""
    nlp = language.blank()
    model = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(encoder),
        "device": "cpu",
    }
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": model})
    nlp.add_pipe("tagger", config=head_config("tagger", LISTENER))
    nlp.add_pipe("distil_ner", config=head_config("tagger", LISTENER))
    return nlp


def make_examples(nlp: Any, texts: tuple[str, ...]) -> list[Example]:
    """Tag every second token; the first one is an entity."""
    examples = []
    for doc in map(nlp.make_doc, texts):
        tags = ["A" if i % 2 else "B" for i in range(len(doc))]
        entities = ["U-LOC"] + ["O"] * (len(doc) - 1)
        examples.append(Example.from_dict(doc, {"tags": tags, "entities": entities}))
    return examples


def predictions(docs: list[Doc]) -> list[list[tuple[str, str]]]:
    return [[(token.tag_, token.ent_type_) for token in doc] for doc in docs]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_pipeline_of_the_language(
    name: str, kind: str, encoders: dict[str, Path], tmp_path: Path
) -> None:
    language = LANGUAGES[name]
    nlp = make_pipeline(language, encoders[kind])
    examples = make_examples(nlp, language.texts)
    nlp.initialize(lambda: examples)
    optimizer = adam()
    for _ in range(2):
        losses: dict[str, float] = {}
        nlp.update(examples, sgd=optimizer, losses=losses)
        assert losses["tagger"] > 0
        assert losses["distil_ner"] > 0
    nlp.to_disk(tmp_path / "torch")
    loaded = spacy.load(tmp_path / "torch")
    texts = [*language.texts, *ODD, " ".join(language.texts * 12)]
    before = list(nlp.pipe(texts))
    assert predictions(before) == predictions(list(loaded.pipe(texts)))

    quantize(tmp_path / "torch", tmp_path / "int8")
    small = spacy.load(tmp_path / "int8")
    assert small.meta["lang"] == language.code
    for pipeline, tolerance in ((loaded, 1e-5), (small, 0.0)):
        together = list(pipeline.pipe(texts))
        alone = [pipeline(text) for text in texts]
        assert [doc.text for doc in alone] == texts
        assert predictions(together) == predictions(alone)
        for left, right in zip(together, alone, strict=True):
            np.testing.assert_allclose(left.tensor, right.tensor, rtol=0, atol=tolerance)

    # The package names what spaCy's tokenizer needs.
    (tmp_path / "packages").mkdir()
    spacy.cli.package(
        tmp_path / "int8", tmp_path / "packages", name="p", create_sdist=False, create_wheel=False
    )
    (meta,) = (tmp_path / "packages").glob("*/meta.json")
    required = [str(each).lower() for each in srsly.read_json(meta)["requirements"]]
    for package in language.packages:
        assert sum(each.startswith(package) for each in required) == 1, required
    assert len(required) == len(language.packages) + 1  # and spacy-distil


@pytest.mark.slow
def test_a_long_chinese_doc_is_encoded(encoders: dict[str, Path]) -> None:
    """300,000 characters. The beginning has the vectors that it has in a shorter doc."""
    nlp = make_pipeline(LANGUAGES["zh"], encoders["unigram"])
    nlp.initialize(lambda: make_examples(nlp, LANGUAGES["zh"].texts))
    text = (LANGUAGES["zh"].texts[0] * 12_000)[:300_000]
    doc = nlp(text)
    assert doc.tensor.shape == (len(doc), 32)
    assert np.isfinite(doc.tensor).all()
    assert np.abs(doc.tensor).sum(axis=1).min() > 0
    # All but its last windows are the same.
    start = nlp(text[:3000])
    n = len(start) - 200
    np.testing.assert_allclose(doc.tensor[:n], start.tensor[:n], rtol=0, atol=1e-5)


def test_a_missing_tokenizer_gives_spacy_s_own_message(
    encoders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nlp = make_pipeline(LANGUAGES["xx"], encoders["bytes"])
    nlp.initialize(lambda: make_examples(nlp, LANGUAGES["xx"].texts))
    nlp.to_disk(tmp_path)
    config = load_config(tmp_path / "config.cfg", interpolate=False)
    config["nlp"]["lang"] = "ja"
    config["nlp"]["tokenizer"] = get_lang_class("ja").default_config["nlp"]["tokenizer"]
    config.to_disk(tmp_path / "config.cfg")
    monkeypatch.setitem(__import__("sys").modules, "sudachipy", None)
    capsys.readouterr()
    with pytest.raises(ImportError) as error:
        spacy.load(tmp_path)
    assert str(error.value).startswith("Japanese support requires SudachiPy")
    assert "".join(capsys.readouterr()) == ""


# Requirements


@pytest.mark.parametrize("lang", ["ja", "ko", "th"])
def test_requirements_are_those_of_spacy_s_extras(lang: str) -> None:
    tokenizer = get_lang_class(lang).default_config["nlp"]["tokenizer"]["@tokenizers"]

    def parts(requirement: str) -> set[str]:
        name = requirement.replace(">", ",>").replace("!", ",!", 1).split(";")[0]
        return {part for part in name.replace(" ", "").split(",") if part}

    extras = [each for each in requires("spacy") or () if f'extra == "{lang}"' in each]
    assert [parts(each) for each in TOKENIZERS[tokenizer]] == [parts(each) for each in extras]


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"@tokenizers": "spacy.Tokenizer.v1"}, []),
        ({"@tokenizers": "spacy.ko.KoreanTokenizer"}, ["natto-py>=0.9.0"]),
        ({"@tokenizers": "spacy.zh.ChineseTokenizer", "segmenter": "char"}, []),
        ({"@tokenizers": "spacy.zh.ChineseTokenizer", "segmenter": "jieba"}, ["jieba"]),
        (
            {"@tokenizers": "spacy.zh.ChineseTokenizer", "segmenter": "pkuseg"},
            ["spacy-pkuseg>=0.0.27"],
        ),
        ({"@tokenizers": "spacy.vi.VietnameseTokenizer"}, ["pyvi"]),
        ({"@tokenizers": "spacy.vi.VietnameseTokenizer", "use_pyvi": False}, []),
        ({}, []),
    ],
)
def test_requirements_of_a_tokenizer(tokenizer: dict[str, Any], expected: list[str]) -> None:
    meta: dict[str, Any] = {"requirements": ["mine==1", "spacy-distil[train]>=0.0"]}
    for _ in range(2):  # a second time changes nothing
        set_requirements(meta, "onnx", {"nlp": {"tokenizer": tokenizer}})
        mine, *others, own = meta["requirements"]
        assert mine == "mine==1"
        assert others == expected
        assert own.startswith("spacy-distil>=")


def test_a_requirement_of_the_user_s_own_stays() -> None:
    meta: dict[str, Any] = {"requirements": ["SudachiPy == 0.6.8", "sudachidict-core"]}
    config = {"nlp": {"tokenizer": {"@tokenizers": "spacy.ja.JapaneseTokenizer"}}}
    set_requirements(meta, "onnx", config)
    assert meta["requirements"][:-1] == ["SudachiPy == 0.6.8", "sudachidict-core"]
