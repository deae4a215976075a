"""Pipelines are trained with spacy-curated-transformers here, converted, and run side by side."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from spacy.lookups import Lookups
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from thinc.api import Config, Model
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.encoding import PieceTokenizer, read_docs
from spacy_distil.engines.torch import TorchEngine
from spacy_distil.errors import ConfigError
from spacy_distil.students.starting import save_student
from tests.test_light_import import run_python
from tests.util import SENTENCES, head_config, make_examples, random_text

pytest.importorskip(
    "spacy_curated_transformers",
    reason="spacy-curated-transformers is not installed: nothing to convert",
)

from curated_tokenizers import ByteBPEProcessor, SentencePieceProcessor, WordPieceProcessor
from curated_transformers.models.albert import AlbertConfig, AlbertEncoder
from curated_transformers.models.bert import BertConfig, BertEncoder
from curated_transformers.models.hf_util import convert_hf_pretrained_model_parameters
from curated_transformers.models.roberta import RobertaConfig, RobertaEncoder
from spacy_curated_transformers import tokenization
from transformers.convert_slow_tokenizer import import_protobuf

from spacy_distil.export.convert import convert, convert_and_quantize
from spacy_distil.export.quantize import quantize
from spacy_distil.export.sources import curated as source
from spacy_distil.export.sources.curated_pieces import (
    UnknownPieces,
    build_tokenizer,
    note_on_pieces,
)
from spacy_distil.export.sources.curated_weights import to_transformers
from tests import curated
from tests.curated import (
    KINDS,
    ODD_TEXTS,
    PIECES,
    SENTENCEPIECE,
    add_curated,
    listener,
    make_curated,
    train,
    wordpiece,
)

# Of at most 104 pieces: one window in both pipelines.
SHORT = [*SENTENCES, "Ann visited Rome in spring.", "We like pizza in Oslo"]
NLP = spacy.blank("en")


def reference_vectors(nlp: Any, docs: Sequence[Doc], pooling: str) -> list[np.ndarray]:
    """Token vectors as a head of spacy-curated-transformers sees them."""
    block = Config({"model": listener(pooling)})
    reads = spacy.registry.resolve(block)["model"]
    return reads.predict(list(docs))


def assert_same(
    original: Any, candidate: Any, texts: Sequence[str] = SHORT, pooling: str = "mean"
) -> None:
    """The same predictions, and the same token vectors."""
    theirs, ours = list(original.pipe(texts)), list(candidate.pipe(texts))
    for left, right in zip(theirs, ours, strict=True):
        for attribute in ("tag_", "morph", "dep_", "lemma_", "pos_", "ent_iob_", "ent_type_"):
            assert [str(getattr(token, attribute)) for token in left] == [
                str(getattr(token, attribute)) for token in right
            ]
        assert [token.head.i for token in left] == [token.head.i for token in right]
        assert left.cats == pytest.approx(right.cats, abs=1e-4)
    # Or equal predictions would say nothing.
    assert len({token.tag_ for doc in theirs for token in doc}) > 2
    if "transformer" in original.pipe_names:
        expected = reference_vectors(original, theirs, pooling)
        for vectors, doc in zip(expected, ours, strict=True):
            assert np.abs(vectors).max(initial=1) > 0.1
            np.testing.assert_allclose(doc.tensor, vectors, atol=2e-5)


# Pieces


def random_texts(n: int = 150) -> list[str]:
    """Of odd characters, of all of Unicode, of letters with and without marks."""
    rng = random.Random(0)
    known = "".join(ODD_TEXTS)
    every = [chr(i) for i in range(1, 0x30000) if not 0xD800 <= i < 0xE000]
    texts = ["".join(rng.choices(known, k=rng.randrange(1, 40))) for _ in range(n)]
    texts += [
        "".join(rng.choices(every[: rng.choice((600, 0x2FFF, len(every)))], k=20)) for _ in texts
    ]
    ranges = [every[:size] for size in (600, 0x2FFF, len(every))]
    texts += ["".join(rng.choices(rng.choice(ranges), k=20)) for _ in range(n)]
    texts += ["".join(rng.choices("aeocuAE", k=6)) + "\u0301" for _ in texts[:50]]
    return [*SENTENCES, *ODD_TEXTS, *(random_text(rng, 30) for _ in range(10)), *texts]


def differences(encoder: Model, texts: Sequence[str]) -> list[str]:
    """The tokens whose pieces differ from the piece encoder's."""
    return differences_of_docs(encoder, [NLP.make_doc(text) for text in texts])


def differences_of_docs(encoder: Model, docs: list[Doc]) -> list[str]:
    tokenizer = PieceTokenizer.from_str(build_tokenizer(encoder).to_str())
    ids, lengths = tokenizer.pack_tokens([text.split() for text in read_docs(docs)])
    ends = np.cumsum(lengths)
    actual = [ids[end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]
    expected = []
    for pieces in encoder.predict(docs):
        ids, ends = pieces.dataXd, np.cumsum(pieces.lengths)
        parts = [ids[e - n : e].tolist() for e, n in zip(ends, pieces.lengths, strict=True)]
        assert parts[0] == tokenizer.prefix
        assert parts[-1] == tokenizer.suffix
        expected += parts[1:-1]
    tokens = [token.text for doc in docs for token in doc]
    return [
        token for token, one, other in zip(tokens, actual, expected, strict=True) if one != other
    ]


def is_marked(token: str) -> bool:
    """`tokenizers` looks a grapheme up as a whole, SentencePiece each of its characters."""
    return any(unicodedata.category(c).startswith("M") or c in "\uff9e\uff9f" for c in token)


@pytest.mark.parametrize("kind", PIECES)
def test_pieces_are_the_same(kind: str) -> None:
    wrong = differences(PIECES[kind](), random_texts())
    if "Sentencepiece" in kind:
        assert len(wrong) < 10
        assert all(map(is_marked, wrong))
    elif kind == "CharEncoder":
        assert wrong
        assert all(token.isspace() for token in wrong)
    else:
        assert wrong == []


@pytest.mark.parametrize("bert", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
def test_word_pieces_are_the_same(bert: bool, lowercase: bool, strip_accents: bool) -> None:
    encoder = wordpiece(bert=bert, lowercase=lowercase, strip_accents=strip_accents)
    assert differences(encoder, random_texts()) == []
    assert note_on_pieces(encoder) == ""


@pytest.mark.slow
@pytest.mark.parametrize("bert", [True, False])
def test_word_pieces_of_a_real_vocabulary_are_the_same(teacher_dir: Path, bert: bool) -> None:
    encoder = wordpiece(bert=bert)
    encoder.attrs["wordpiece_processor"] = WordPieceProcessor(real_vocabulary(teacher_dir))
    assert differences(encoder, random_texts(400)) == []


def real_vocabulary(teacher_dir: Path) -> list[str]:
    vocab = json.loads((teacher_dir / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(vocab, key=vocab.__getitem__)


@pytest.mark.parametrize("kind", [kind for kind in PIECES if kind != "CharEncoder"])
def test_long_words(kind: str) -> None:
    words = ["a" * 900, "ab☃" * 300, "ʰ" * 900 + "Σ", "." * 900, "'" * 900 + "Σ"]
    if "piece" in kind and "Word" not in kind:
        words.append("▁" * 5000 + "a")
    docs = [Doc(NLP.vocab, [word]) for word in words]
    assert differences_of_docs(PIECES[kind](), docs) == []


def test_too_long_words_are_unknown() -> None:
    encoder = wordpiece()
    assert differences_of_docs(encoder, [Doc(NLP.vocab, ["a" * 1000])]) == []
    (wrong,) = differences_of_docs(encoder, [Doc(NLP.vocab, ["a" * 1001])])
    tokenizer = build_tokenizer(encoder)
    unknown = encoder.attrs["wordpiece_processor"].get_initial("[UNK]")
    assert tokenizer.encode(wrong, add_special_tokens=False).ids == [unknown]


def test_a_word_that_cannot_be_completed_is_noted() -> None:
    """There is "##bc", but no "##b"."""
    encoder = wordpiece()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "c", "##a", "##c", "b", "##bc"]
    encoder.attrs["wordpiece_processor"] = WordPieceProcessor(pieces)
    assert "1 characters ('b')" in note_on_pieces(encoder)
    assert differences(encoder, ["a ab abc aabcca b ☃ a☃ ☃a c☃c"]) == ["ab"]


def sentencepiece_with(**settings: Any) -> Model:
    """A SentencePiece encoder whose model has other settings of normalization."""
    model = import_protobuf().ModelProto.FromString(SENTENCEPIECE.read_bytes())
    for name, value in settings.items():
        spec = model.trainer_spec if hasattr(model.trainer_spec, name) else model.normalizer_spec
        setattr(spec, name, value)
    encoder = curated.sentencepiece()
    processor = SentencePieceProcessor.from_protobuf(model.SerializeToString())
    encoder.attrs["sentencepiece_processor"] = processor
    return encoder


@pytest.mark.parametrize(
    "settings",
    [
        {"precompiled_charsmap": b""},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"precompiled_charsmap": b"", "remove_extra_whitespaces": False},
    ],
)
def test_other_normalizers(settings: dict[str, Any]) -> None:
    wrong = differences(sentencepiece_with(**settings), random_texts())
    assert len(wrong) < 10
    assert all(map(is_marked, wrong))


def test_user_defined_and_unused_pieces() -> None:
    model = import_protobuf().ModelProto.FromString(SENTENCEPIECE.read_bytes())
    for i, piece in enumerate(model.pieces[3:], start=3):
        if piece.piece in {",", "s", "ing", "▁the", "an"}:
            piece.type = 4
        elif i % 7 == 0:
            piece.type = 5
    encoder = curated.sentencepiece()
    processor = SentencePieceProcessor.from_protobuf(model.SerializeToString())
    encoder.attrs["sentencepiece_processor"] = processor
    texts = [*random_texts(), "singing the sands, and things"]
    assert differences(encoder, ["singing the sands, and things"]) == []
    wrong = differences(encoder, texts)
    assert len(wrong) < 10
    assert all(map(is_marked, wrong))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tokenization.build_bert_wordpiece_encoder_v1, "no vocabulary"),
        (tokenization.build_byte_bpe_encoder_v1, "no vocabulary"),
        (tokenization.build_char_encoder_v1, "no vocabulary"),
        (tokenization.build_xlmr_sentencepiece_encoder_v1, "no SentencePiece model"),
        (lambda: sentencepiece_with(model_type=2), "type 2; expected 1"),
        (lambda: sentencepiece_with(treat_whitespace_as_suffix=True), "whitespace_as_suffix"),
        (lambda: Model("mine", lambda *_: None), "'mine'; expected BertWordpieceEncoder"),
        (lambda: with_pieces(["a", ""]), "empty piece"),
        (lambda: with_pieces(["a", "[CLS]", "[UNK]"]), r"no piece '\[SEP\]'"),
        (lambda: with_merges([("a", "q")]), "vocabulary that tokenizers refuses"),
    ],
)
def test_pieces_that_cannot_be_converted(make: Callable[[], Model], message: str) -> None:
    with pytest.raises(UnknownPieces, match=message):
        build_tokenizer(make())


def with_pieces(pieces: list[str]) -> Model:
    encoder = wordpiece()
    encoder.attrs["wordpiece_processor"] = WordPieceProcessor(pieces)
    return encoder


def with_merges(merges: list[tuple[str, str]]) -> Model:
    encoder = curated.byte_bpe()
    vocab = encoder.attrs["byte_bpe_processor"].vocab
    encoder.attrs["byte_bpe_processor"] = ByteBPEProcessor(vocab, merges)
    return encoder


# Weights

SHAPE = {
    "hidden_width": 48,
    "intermediate_width": 80,
    "num_attention_heads": 6,
    "num_hidden_layers": 6,
    "vocab_size": 90,
    "max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    ("encoder_class", "config_class", "settings"),
    [
        (BertEncoder, BertConfig, {}),
        (BertEncoder, BertConfig, {"hidden_act": "relu", "layer_norm_eps": 0.3}),
        (BertEncoder, BertConfig, {"hidden_act": "gelu_new", "type_vocab_size": 3}),
        (RobertaEncoder, RobertaConfig, {}),
        (RobertaEncoder, RobertaConfig, {"padding_idx": 5, "layer_norm_eps": 0.1}),
        (AlbertEncoder, AlbertConfig, {"embedding_width": 16}),
        (AlbertEncoder, AlbertConfig, {"embedding_width": 48, "hidden_act": "gelu"}),
        (AlbertEncoder, AlbertConfig, {"num_hidden_groups": 3, "inner_group_num": 2}),
    ],
)
def test_hidden_states_are_the_same(
    encoder_class: Any, config_class: Any, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    if config_class is not AlbertConfig:
        settings = {"embedding_width": SHAPE["hidden_width"], **settings}
    encoder = encoder_class(config_class(**SHAPE, **settings)).eval()
    for parameter in encoder.parameters():  # also those that begin as zeros and ones
        parameter.data += 0.2 * torch.randn_like(parameter)
    model = to_transformers(encoder)
    padding = model.config.pad_token_id
    ids = torch.randint(10, 90, (4, 30))
    for row, length in enumerate((30, 17, 1, 29)):
        ids[row, length:] = padding
    mask = ids != padding
    with torch.inference_mode():
        expected = encoder(ids).all_outputs[-1]
        actual = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    states = expected[mask]
    error = (actual[mask] - states).norm() / states.norm()
    assert error < 1e-5
    # Pieces and positions make a difference.
    assert (states - states.mean(dim=0)).norm() / states.norm() > 0.1


# Pipelines


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_vectors_are_the_same(kind: str, converted: Any) -> None:
    original = make_curated(kind)
    conversion, candidate = converted(original)
    assert candidate.pipe_names == original.pipe_names
    assert conversion.shared == {"transformer": "mean"}
    assert conversion.private == {}
    assert len(conversion.notes) == (kind == "characters")
    assert_same(original, candidate)
    texts = [text for text in ODD_TEXTS if len(text) < 90 and text.strip()]
    if kind == "characters":  # has pieces of white space
        texts = [text for text in texts if not any(t.is_space for t in NLP.make_doc(text))]
    elif "piece" in KINDS[kind][1].lower() and kind not in ("bert", "plain"):
        texts = [text for text in texts if not is_marked(text)]
    assert_same(original, candidate, [*SHORT, *texts])


def english() -> Any:
    """The layout of en_core_web_trf."""
    nlp = spacy.blank("en")
    add_curated(nlp, "roberta")
    nlp.add_pipe("tagger", config=head_config("tagger", listener()))
    parser: Any = {"min_action_freq": 1, **head_config("ner", listener())}
    parser["model"]["state_type"] = "parser"
    nlp.add_pipe("parser", config=parser)
    nlp.add_pipe("attribute_ruler")
    nlp.add_pipe("lemmatizer", config={"mode": "rule"})
    nlp.add_pipe("ner", config=head_config("ner", listener()))
    nlp.config["initialize"]["components"]["transformer"] = {
        "encoder_loader": {
            "@model_loaders": "spacy-curated-transformers.HFTransformerEncoderLoader.v1",
            "name": "roberta-base",
            "revision": "main",
        },
        "piecer_loader": {
            "@model_loaders": "spacy-curated-transformers.HFPieceEncoderLoader.v1",
            "name": "roberta-base",
            "revision": "main",
        },
    }
    return nlp


def parsed_examples(nlp: Any) -> list[Example]:
    examples = []
    for example in make_examples(nlp):
        doc = example.reference
        root = next(token.i for token in doc if token.tag_.startswith("VB"))
        sides = ["ROOT" if t.i == root else "nsubj" if t.i < root else "obj" for t in doc]
        annotations = {
            "tags": [token.tag_ for token in doc],
            "entities": [(token.ent_type_ and f"U-{token.ent_type_}") or "O" for token in doc],
            "heads": [root] * len(doc),
            "deps": sides,
        }
        words = [token.text for token in doc]
        examples.append(Example.from_dict(Doc(nlp.vocab, words), annotations))
    return examples


def train_english(nlp: Any) -> Any:
    loaders = nlp.config["initialize"]["components"].pop("transformer")
    lookups = Lookups()
    lookups.add_table("lemma_rules", {"verb": [["ed", ""]]})
    lookups.add_table("lemma_index", {"verb": ["visit"]})
    lookups.add_table("lemma_exc", {"verb": {}})
    nlp.get_pipe("lemmatizer").initialize(lookups=lookups)
    # There are no tables of the language here to initialize it again.
    nlp.get_pipe("lemmatizer").initialize = lambda get_examples, nlp=None: None
    train(nlp, steps=60, examples=parsed_examples(nlp))
    nlp.get_pipe("attribute_ruler").add([[{"TAG": "VBD"}]], {"POS": "VERB"})
    nlp.config["initialize"]["components"]["transformer"] = loaders
    return nlp


@pytest.fixture(scope="module")
def trf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline like en_core_web_trf."""
    nlp = train_english(english())
    nlp.meta["requirements"] = ["spacy-curated-transformers>=0.2.0,<0.3.0", "other>=2"]
    path = tmp_path_factory.mktemp("curated") / "trf"
    nlp.to_disk(path)
    return path


def test_the_layout_of_en_core_web_trf(trf: Path, tmp_path: Path) -> None:
    conversion = convert(trf, tmp_path / "ours")
    original, candidate = spacy.load(trf), spacy.load(tmp_path / "ours")
    assert conversion.notes == []
    assert conversion.comparison.same_windows.n_docs == 6
    assert conversion.comparison.same_windows.vectors.max < 1e-5
    assert_same(original, candidate)
    docs = list(original.pipe(SHORT))
    assert {token.dep_ for doc in docs for token in doc} >= {"ROOT", "nsubj", "obj"}
    assert "visit" in {token.lemma_ for doc in docs for token in doc}
    model = candidate.config["components"]["transformer"]["model"]
    assert model["pieces_from"] == "tokens"
    assert (model["window"], model["overlap"]) == (144, 40)
    assert model["name"] == "roberta-base"
    assert candidate.config["initialize"]["components"].get("transformer", {}) == {}
    assert "curated" not in (tmp_path / "ours" / "config.cfg").read_text()
    meta = json.loads((tmp_path / "ours" / "meta.json").read_text())
    assert [entry.split(">")[0] for entry in meta["requirements"]] == [
        "other",
        "spacy-distil[train]",
    ]


def test_empty_and_blank_documents(trf: Path, tmp_path: Path) -> None:
    convert(trf, tmp_path / "ours")
    original, candidate = spacy.load(trf), spacy.load(tmp_path / "ours")
    texts = ["Ann  visited\n\nRome   in spring. ", "", "   ", "\n", "We like pizza\t in Oslo."]
    for left, right in zip(original.pipe(texts), candidate.pipe(texts), strict=True):
        assert [token.tag_ for token in left] == [token.tag_ for token in right]
        assert [str(token.dep_) for token in left] == [str(token.dep_) for token in right]
    # One at a time, in batches, ahead and in other processes.
    alone = [candidate(text).tensor for text in [*texts, *SHORT]]
    for settings in ({"batch_size": 2}, {"n_process": 2, "batch_size": 3}):
        for doc, vectors in zip(candidate.pipe([*texts, *SHORT], **settings), alone, strict=True):
            np.testing.assert_allclose(doc.tensor, vectors, atol=1e-5)


def test_long_documents_are_reported(trf: Path, tmp_path: Path) -> None:
    """Of more than `stride` pieces: the original cuts them into windows."""
    rng = random.Random(0)
    original = spacy.load(trf)
    texts = [*SHORT, *(random_text(rng, n) for n in (40, 80, 200))]
    encoder = original.get_pipe("transformer").model.get_ref("piece_encoder")
    sizes = [len(pieces.dataXd) for pieces in encoder.predict(list(map(original.make_doc, texts)))]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    conversion = convert(
        trf, tmp_path / "ours", corpus=tmp_path / "texts.txt", txt_documents="lines"
    )
    comparison = conversion.comparison
    n_short = sum(size <= 104 for size in sizes)
    assert comparison.same_windows.n_docs == n_short < len(texts) - 1
    assert comparison.same_windows.lowest.agreement == 1
    assert comparison.same_windows.vectors.max < 1e-5
    assert comparison.all_windows.n_docs == len(texts)
    assert comparison.all_windows.vectors.max > 1e-3


def test_windows_are_no_longer_than_the_encoder_takes(converted: Any) -> None:
    original = make_curated("roberta", max_position_embeddings=66, model_max_length=50)
    _, candidate = converted(original)
    model = candidate.config["components"]["transformer"]["model"]
    assert (model["window"], model["overlap"]) == (50, 24)
    assert_same(original, candidate, SHORT[-2:])


def test_documents_that_the_original_cannot_process_are_left_out(
    tmp_path: Path, converted: Any
) -> None:
    original = make_curated("roberta", max_position_embeddings=66, model_max_length=50)
    texts = [*SHORT[-2:], "unbelievable " * 30]
    with pytest.raises(ValueError, match="larger than the model's maximum"):
        original(texts[-1])
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    conversion, candidate = converted(
        original, corpus=tmp_path / "texts.txt", txt_documents="lines"
    )
    assert conversion.comparison.n_left_out == 1
    assert candidate(texts[-1]).has_annotation("TAG")


@pytest.mark.parametrize("pooling", ["first", "last", "sum", "max"])
def test_every_pooling_shared(pooling: str, converted: Any) -> None:
    original = make_curated("bert", {"tagger": pooling, "textcat": pooling})
    conversion, candidate = converted(original)
    assert conversion.shared == {"transformer": pooling}
    assert_same(original, candidate, pooling=pooling)


def test_odd_poolings_get_a_copy_of_their_own(converted: Any) -> None:
    original = make_curated("xlmr", {"tagger": "last", "ner": "mean", "textcat": "mean"})
    conversion, candidate = converted(original)
    assert conversion.private == {"tagger": "last"}
    assert_same(original, candidate)


def test_replaced_listeners_keep_their_transformer(converted: Any) -> None:
    original = make_curated("camembert", {"tagger": "mean", "ner": "first", "textcat": "mean"})
    original.replace_listeners("transformer", "ner", ["model.tok2vec"])
    # From here on, the shared encoder goes its own way.
    module = original.get_pipe("transformer").model.get_ref("transformer").shims[0]._model
    for parameter in module.parameters():
        parameter.data *= 1.05
    conversion, candidate = converted(original, private_copies=False)
    assert conversion.private == {"ner": "first"}
    assert_same(original, candidate)
    (own,) = (
        shim
        for node in candidate.get_pipe("ner").model.walk()
        for shim in node.shims
        if isinstance(shim, EncoderShim)
    )
    assert own.settings.pieces_from == "tokens"


def test_without_a_shared_transformer(converted: Any) -> None:
    original = make_curated("bert", {"tagger": "mean", "textcat": "mean"})
    for name in ("tagger", "textcat"):
        original.replace_listeners("transformer", name, ["model.tok2vec"])
    original.remove_pipe("transformer")
    conversion, candidate = converted(original)
    assert conversion.shared == {}
    assert_same(original, candidate)


def test_two_transformers(converted: Any) -> None:
    nlp = spacy.blank("xx")
    add_curated(nlp, "bert", name="lower")
    nlp.add_pipe("tagger", config=head_config("tagger", listener(upstream="lower")))
    add_curated(nlp, "roberta")
    nlp.add_pipe("ner", config=head_config("ner", listener("last", upstream="transformer")))
    original = train(nlp)
    conversion, candidate = converted(original)
    assert conversion.shared == {"lower": "mean", "transformer": "last"}
    assert_same(original, candidate, pooling="last")


def test_a_frozen_transformer_stays_frozen(converted: Any) -> None:
    _, candidate = converted(make_curated("bert", {"tagger": "mean"}, component={"frozen": True}))
    assert not get_encoder(candidate.get_pipe("transformer").model).is_trainable


def test_training_goes_on(converted: Any) -> None:
    _, candidate = converted(make_curated("roberta", {"tagger": "mean", "textcat": "max"}))
    examples = make_examples(candidate)
    before = candidate(SHORT[0]).tensor.copy()
    optimizer = candidate.resume_training()
    losses: list[float] = []
    for _ in range(6):
        step: dict[str, float] = {}
        candidate.update(examples, sgd=optimizer, losses=step)
        losses.append(step["tagger"])
    assert losses[-1] < losses[0]
    assert not np.allclose(before, candidate(SHORT[0]).tensor)
    again = spacy.blank("xx").from_config(candidate.config).from_bytes(candidate.to_bytes())
    np.testing.assert_array_equal(again(SHORT[0]).tensor, candidate(SHORT[0]).tensor)


def test_trf_data(trf: Path, tmp_path: Path) -> None:
    convert(trf, tmp_path / "ours", trf_data=True)
    doc, expected = spacy.load(tmp_path / "ours")(SHORT[0]), spacy.load(trf)(SHORT[0])
    data, pieces = doc._.trf_data, expected._.trf_data.last_hidden_layer_state
    np.testing.assert_array_equal(data.align.lengths, pieces.lengths)
    hidden = data.model_output.last_hidden_state.reshape(-1, data.width)
    np.testing.assert_allclose(hidden[data.align.dataXd], pieces.dataXd, atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "plain", "roberta", "xlmr", "camembert"])
def test_a_student_starts_from_its_layers(kind: str, tmp_path: Path, converted: Any) -> None:
    _, teacher = converted(make_curated(kind, {"tagger": "mean"}))
    encoder = get_encoder(teacher.get_pipe("transformer").model)
    save_student(encoder, tmp_path / "student", n_layers=1)
    student = DistilTransformer(str(tmp_path / "student"), pieces_from="tokens", device="cpu")
    student.initialize()
    docs = [NLP.make_doc(text) for text in (*SENTENCES, *ODD_TEXTS)]
    tokens = [text.split() for text in read_docs(docs)]
    tokenizers = [each.loaded.tokenizer for each in (encoder, get_encoder(student))]
    (ids, lengths), (new_ids, new_lengths) = (each.pack_tokens(tokens) for each in tokenizers)
    np.testing.assert_array_equal(ids, new_ids)
    np.testing.assert_array_equal(lengths, new_lengths)
    assert tokenizers[0].prefix == tokenizers[1].prefix
    assert tokenizers[0].suffix == tokenizers[1].suffix


def test_the_config_of_a_student_reads_tokens_too(trf: Path, tmp_path: Path) -> None:
    convert(trf, tmp_path / "ours")
    arguments = ["init-config", "pipeline", tmp_path / "s.cfg", "--teacher", tmp_path / "ours"]
    result = CliRunner().invoke(distil_cli, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    config = Config().from_disk(tmp_path / "s.cfg", interpolate=False)
    assert config["components"]["transformer"]["model"]["pieces_from"] == "tokens"


def test_pieces_that_are_taken_for_padding(tmp_path: Path, converted: Any) -> None:
    """Unknown pieces have the number of the padding here: the encoder does not see them."""
    original = make_curated("albert", padding_idx=0)
    (tmp_path / "texts.txt").write_text("Ann likes Rome.\nAnn likes 東京.")
    conversion, _ = converted(
        original, corpus=tmp_path / "texts.txt", txt_documents="lines", min_agreement=0
    )
    assert "took unknown pieces for padding (padding_idx = 0)" in conversion.notes[0]
    assert conversion.comparison.same_windows.n_docs == 1
    assert conversion.comparison.same_windows.vectors.max < 1e-5
    assert conversion.comparison.all_windows.n_docs == 2


@pytest.mark.slow
def test_real_weights(teacher_dir: Path, converted: Any) -> None:
    hf = transformers.AutoModel.from_pretrained(teacher_dir)
    vocabulary = real_vocabulary(teacher_dir)
    nlp = spacy.blank("xx")
    config = hf.config
    add_curated(
        nlp,
        "bert",
        vocab_size=config.vocab_size,
        hidden_width=config.hidden_size,
        intermediate_width=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_hidden_layers=config.num_hidden_layers,
    )
    model = nlp.get_pipe("transformer").model  # type: ignore[attr-defined]
    module = model.get_ref("transformer").shims[0]._model
    module.load_state_dict(convert_hf_pretrained_model_parameters(hf))
    model.get_ref("piece_encoder").attrs["wordpiece_processor"] = WordPieceProcessor(vocabulary)
    for pipe in ("tagger", "ner"):
        block = listener(width=config.hidden_size)
        nlp.add_pipe(pipe, config=head_config(pipe, block))
    original = train(nlp, steps=5, learn_rate=1e-3)
    conversion, candidate = converted(original)
    assert conversion.comparison.same_windows.n_docs == 6
    assert conversion.comparison.same_windows.vectors.max < 1e-4
    assert_same_tags(original, candidate, [*SHORT, *filter(str.strip, ODD_TEXTS)])
    engine = get_encoder(candidate.get_pipe("transformer").model).engine
    assert isinstance(engine, TorchEngine)
    state = original.get_pipe("transformer").model.get_ref("transformer").shims[0]._model
    name = "embeddings.word_embeddings.weight"
    weights = state.state_dict()[f"curated_encoder.{name}"]
    assert engine.model.state_dict()[name].equal(weights)


def assert_same_tags(original: Any, candidate: Any, texts: Sequence[str]) -> None:
    for left, right in zip(original.pipe(texts), candidate.pipe(texts), strict=True):
        assert [(t.tag_, t.ent_iob_) for t in left] == [(t.tag_, t.ent_iob_) for t in right]


@pytest.mark.slow
def test_quantized_and_without_torch(trf: Path, tmp_path: Path) -> None:
    original = spacy.load(trf)
    DocBin(docs=[example.reference for example in parsed_examples(original)]).to_disk(
        tmp_path / "dev.spacy"
    )
    convert_and_quantize(trf, tmp_path / "int8", corpus=tmp_path / "dev.spacy")
    doc = spacy.load(tmp_path / "int8")(SHORT[-1])
    expected = [(t.tag_, t.dep_, t.ent_iob_) for t in original(SHORT[-1])]
    assert [(t.tag_, t.dep_, t.ent_iob_) for t in doc] == expected
    out = run_python(
        f"""
        import spacy

        doc = spacy.load({str(tmp_path / "int8")!r})({SHORT[-1]!r})
        print([(token.tag_, token.dep_, token.ent_iob_) for token in doc])
        names = ("torch", "transformers", "spacy_curated_transformers", "curated_tokenizers")
        print([name for name in names if name in sys.modules])
        """,
        block=True,
    )
    assert out.splitlines() == [str(expected), "[]"]


def test_pruning_counts_the_pieces_of_tokens(trf: Path, tmp_path: Path) -> None:
    """The tokens of the texts have the same pieces as before, so predictions are the same."""
    convert(trf, tmp_path / "ours")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES[:2]))
    result = quantize(
        tmp_path / "ours",
        tmp_path / "fp32",
        corpus=tmp_path / "texts.txt",
        precision="fp32",
        prune_vocab=tmp_path / "texts.txt",
    )
    assert result.pruning is not None
    assert result.pruning.n_after < result.pruning.n_before
    assert result.pruning.loss.changed == 0
    assert {measure.agreement for measure in result.agreement.measures} == {1.0}
    original, pruned = spacy.load(tmp_path / "ours"), spacy.load(tmp_path / "fp32")
    for text in SENTENCES[:2]:
        np.testing.assert_allclose(pruned(text).tensor, original(text).tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_command(trf: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        distil_cli, ["convert", str(trf), str(tmp_path / "ours"), "--quantize"]
    )
    assert result.exit_code == 0, result.output
    assert "same windows in 6 of 6 documents" in result.output
    meta = json.loads((tmp_path / "ours" / "meta.json").read_text())
    assert not any("curated" in entry for entry in meta["requirements"])
    packaged = CliRunner().invoke(
        spacy.cli._util.app,
        ["package", str(tmp_path / "ours"), str(tmp_path), "--build", "none", "--name", "mine"],
    )
    assert packaged.exit_code == 0, packaged.output
    (package,) = tmp_path.glob("*_mine-*")
    requirements = json.loads((package / "meta.json").read_text())["requirements"]
    assert not any("curated" in entry or "transformers" in entry for entry in requirements)


# Refusals


def refuses(converted: Any, nlp: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(nlp)


def test_a_listener_to_all_layers_is_refused(tmp_path: Path, converted: Any) -> None:
    nlp = spacy.blank("xx")
    add_curated(nlp, "bert", component={"all_layer_outputs": True})
    weighting = {"@architectures": f"{curated.PACKAGE}.ScalarWeight.v1", "num_layers": 2}
    block = listener(kind="ScalarWeighting", weighting=weighting)
    nlp.add_pipe("tagger", config=head_config("tagger", block))
    nlp.initialize(lambda: make_examples(nlp))
    refuses(converted, nlp, r"'tagger' has a ScalarWeightingListener, .*'spacy distil pipeline'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trf"]


def test_another_pooling_is_refused(converted: Any) -> None:
    nlp = spacy.blank("xx")
    add_curated(nlp, "bert")
    layers = {"first": {"@layers": "reduce_mean.v1"}, "then": {"@layers": "softmax_activation.v1"}}
    block = {**listener(), "pooling": {"@layers": "chain.v1", "*": layers}}
    nlp.add_pipe("tagger", config=head_config("tagger", block))
    nlp.initialize(lambda: make_examples(nlp))
    refuses(
        converted,
        nlp,
        r"'tagger' has the pooling 'reduce_mean>>.*expected one of reduce_mean\.v1, "
        r"reduce_first\.v1, reduce_last\.v1, reduce_sum\.v1, reduce_max\.v1\.",
    )


def test_an_untrained_pipeline_is_refused(converted: Any) -> None:
    original = make_curated("bert", {"tagger": "mean"})
    encoder = original.get_pipe("transformer").model.get_ref("piece_encoder")
    encoder.attrs["wordpiece_processor"] = WordPieceProcessor([])
    refuses(converted, original, "'transformer' has no vocabulary: the pipeline was not trained")


def test_a_wrapped_listener_to_all_layers_is_refused(converted: Any) -> None:
    nlp = spacy.blank("xx")
    add_curated(nlp, "bert", component={"all_layer_outputs": True})
    weighting = {"@architectures": f"{curated.PACKAGE}.ScalarWeight.v1", "num_layers": 2}
    block = listener(kind="ScalarWeighting", weighting=weighting)
    nlp.add_pipe("tagger", config=head_config("tagger", block))
    nlp.initialize(lambda: make_examples(nlp))
    nlp.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    refuses(converted, nlp, "'tagger' has a ScalarWeightingListener")


def test_torchscript_is_refused() -> None:
    """The package itself cannot load one by name: the layer has no width."""
    nlp = spacy.blank("xx")
    add_curated(nlp, "bert")
    encoder = nlp.get_pipe("transformer").model  # type: ignore[attr-defined]
    shim = encoder.get_ref("transformer").shims[0]
    shim._model = torch.jit.script(torch.nn.Linear(2, 2))
    (problem,) = source.problems_of_encoder("transformer", encoder)
    assert problem == "'transformer' is a TorchScript model, whose layers cannot be read"


def test_settings_of_the_package_that_are_left_are_named(trf: Path, tmp_path: Path) -> None:
    shutil.copytree(trf, tmp_path / "trf")
    config = Config().from_disk(tmp_path / "trf" / "config.cfg", interpolate=False)
    name = f"{curated.PACKAGE}.gradual_transformer_unfreezing.v1"
    config["training"]["before_update"] = {"@callbacks": name, "target_pipes": {"transformer": 5}}
    config.to_disk(tmp_path / "trf" / "config.cfg")
    with pytest.raises(ConfigError, match=r"\[training.before_update\] @callbacks = 'spacy-cur"):
        convert(tmp_path / "trf", tmp_path / "ours")


def test_both_kinds_are_refused(tmp_path: Path) -> None:
    """From the config alone, before anything is loaded."""
    spacy.blank("en").to_disk(tmp_path / "trf")
    config = Config().from_disk(tmp_path / "trf" / "config.cfg", interpolate=False)
    config["nlp"]["pipeline"] = ["one", "two"]
    config["components"]["one"] = {"factory": "curated_transformer"}
    config["components"]["two"] = {"factory": "transformer"}
    config.to_disk(tmp_path / "trf" / "config.cfg")
    for convert_it in (convert, convert_and_quantize):
        with pytest.raises(ConfigError, match="of spacy-transformers and of spacy-curated-transf"):
            convert_it(tmp_path / "trf", tmp_path / "out")
