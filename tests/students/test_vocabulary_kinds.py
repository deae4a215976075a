# ruff: noqa: RUF001
"""Pruning of every kind of tokenizer: the corpus is encoded as before, other text is covered."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from spacy_distil.component.shim import get_encoder
from spacy_distil.encoding import PieceTokenizer
from spacy_distil.errors import ConfigError, CorpusError, WeightsError
from spacy_distil.students.costs import cost_table
from spacy_distil.students.masked_lm_heads import masked_lm_head
from spacy_distil.students.teachers import load_teacher
from spacy_distil.students.vocabulary import (
    VocabularySettings,
    prune_teacher,
    prune_vocabulary,
    pruning_loss,
)
from spacy_distil.students.vocabulary.characters import (
    LARGEST_ALPHABET,
    choose_characters,
    count_dropped,
    script,
)
from spacy_distil.students.vocabulary.kinds import read_kind
from tests.teachers import write_teacher
from tests.util import SENTENCES, make_nlp, write_encoder

# Texts that the tokenizers below are trained on: several scripts, and words that share parts.
TRAINING = [
    *SENTENCES,
    "unbelievable believers believe in belief and disbelief; believing is believable",
    "Straßenbahnhaltestelle Straßenbahn Bahnhof Haltestelle naïve façade coöperate",
    "Привет, мир! Приветствие мира. Миром правит привет.",
    "中文字符 中国文字 文字 字符 日本語 日本 한국어 한국",
    "\u2603 \U0001f600 e\u0301 ﬁ\tטוב مرحبا नमस्ते สวัสดี",
]
ALPHABET = "abelivn ßtrSa中文字日мир\u0301\u2603\U0001f600ﬁ\t.'"


def byte_level() -> Tokenizer:
    """BPE on bytes, as RoBERTa has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TRAINING,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>"]),
    )
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """BPE on characters, with bytes for unknown ones, as in SentencePiece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, limit_alphabet=60, special_tokens=["<unk>", "<s>", *bytes_]
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    content = json.loads(tokenizer.to_str())
    content["model"].update(byte_fallback=True, fuse_unk=True)
    # The bytes are pieces of the model, not added ones.
    content["added_tokens"] = content["added_tokens"][:2]
    return Tokenizer.from_str(json.dumps(content))


def unigram() -> Tokenizer:
    """Unigram, as XLM-R has it. Rare characters are unknown."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=230, special_tokens=["<s>", "<unk>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(TRAINING[:-1], trainer)
    return tokenizer


def word_level() -> Tokenizer:
    """A piece for each word."""
    words = sorted({word for text in TRAINING for word in text.split()})
    vocab = {word: i for i, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        TRAINING[:-1], trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]"])
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "sentencepiece_bpe": sentencepiece_bpe,
    "unigram": unigram,
    "word_level": word_level,
    "word_piece": word_piece,
}


@pytest.fixture(scope="module", params=list(KINDS))
def old(request: pytest.FixtureRequest) -> str:
    return KINDS[request.param]().to_str()


def ids_of(tokenizer_json: str, texts: list[str]) -> list[list[int]]:
    return [pieces.ids.tolist() for pieces in PieceTokenizer.from_str(tokenizer_json)(texts)]


def check_same(old: str, new: str, kept_ids: np.ndarray, texts: list[str]) -> None:
    """Check that texts have the same pieces, unknown ones included."""
    assert [kept_ids[ids].tolist() for ids in ids_of(new, texts)] == ids_of(old, texts)


@given(texts=st.lists(st.text(ALPHABET, max_size=30), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_corpus_is_encoded_as_before(old: str, texts: list[str]) -> None:
    try:
        pruned = prune_vocabulary(old, texts)
    except CorpusError:
        assert not any(ids_of(old, texts))
        return
    assert set(pruned.dropped.values()) <= {0}
    check_same(old, pruned.tokenizer_json, pruned.kept_ids, texts)


def test_random_vocabularies() -> None:
    """Unigram with random scores and ties, and BPE with merges in any order and double ways."""
    rng = random.Random(0)
    for _ in range(100):
        words = sorted({"".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(12)})
        texts = [" ".join("".join(rng.choices("abcd", k=6)) for _ in range(3)) for _ in range(2)]
        scored = [("<unk>", 0.0), *((w, -float(rng.randint(1, 4))) for w in words)]
        scores = Tokenizer(models.Unigram(scored, unk_id=0))
        vocab = {piece: i for i, piece in enumerate(["<unk>", *"abc"])}
        merges: list[tuple[str, str]] = []
        for _ in range(10):
            pair = (rng.choice(list(vocab)[1:]), rng.choice(list(vocab)[1:]))
            if pair not in merges:
                merges.append(pair)
                vocab.setdefault("".join(pair), len(vocab))
        pairs = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
        for tokenizer in (scores, pairs):
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            pruned = prune_vocabulary(tokenizer.to_str(), [*texts, "abc"])
            check_same(tokenizer.to_str(), pruned.tokenizer_json, pruned.kept_ids, texts)


def test_tokens_one_by_one(old: str) -> None:
    docs = [["unbelievable", "", " believers", " 中文字符"], [], ["Straße", "nbahn"]]
    pruned = prune_vocabulary(old, docs)
    new = PieceTokenizer.from_str(pruned.tokenizer_json)
    ids, lengths = new.pack_tokens(docs)
    expected, expected_lengths = PieceTokenizer.from_str(old).pack_tokens(docs)
    assert pruned.kept_ids[ids].tolist() == expected.tolist()
    assert lengths.tolist() == expected_lengths.tolist()
    loss = pruning_loss(PieceTokenizer.from_str(old), new, docs)
    assert (loss.changed, loss.pieces_before) == (0, loss.pieces_after)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_size_is_reached_and_unseen_text_is_covered(old: str, share: float) -> None:
    """Text of the corpus' scripts has no new unknown pieces, but for whole words."""
    kind = read_kind(old)
    smallest = prune_vocabulary(old, ["a"], size=len(kind.pieces)).n_kept
    always = prune_vocabulary(old, TRAINING, min_count=10**6).n_kept
    size = int(always + share * (smallest - always))
    pruned = prune_vocabulary(old, TRAINING, size=size)
    # A piece of BPE may need several others, and then does not fit any more.
    assert size - 3 <= pruned.n_kept <= size
    if kind.content["model"]["type"] == "WordLevel":
        return
    new = read_kind(pruned.tokenizer_json)
    rng = random.Random(0)
    letters = sorted({c for text in TRAINING for c in text})
    texts = ["".join(rng.choices(letters, k=40)) for _ in range(20)]
    for before, after in zip(ids_of(old, texts), ids_of(pruned.tokenizer_json, texts), strict=True):
        assert (kind.unknown_id in before) >= (new.unknown_id in after)


def test_spaces_of_normalizers() -> None:
    """Llama's and Gemma's normalizers write spaces as pieces have them."""
    replace = normalizers.Replace(" ", "▁")
    for normalizer in (replace, normalizers.Sequence([normalizers.Prepend("▁"), replace])):
        tokenizer = sentencepiece_bpe()
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, None
        kind = read_kind(tokenizer.to_str())
        assert all(map(kind.can_occur, ["▁b", "b", "be", "▁"]))
        n_pieces = len(kind.pieces)
        assert prune_vocabulary(tokenizer.to_str(), ["a"], size=n_pieces).n_kept == n_pieces
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), replace])
    kind = read_kind(tokenizer.to_str())
    assert kind.can_occur("▁b")
    assert not kind.can_occur("▁B")


def test_more_pieces_lose_less(old: str) -> None:
    always = prune_vocabulary(old, TRAINING, min_count=10**6).n_kept
    n_pieces = len(read_kind(old).pieces)
    before = PieceTokenizer.from_str(old)
    losses = []
    for size in np.linspace(always, n_pieces, 4).astype(int).tolist():
        pruned = prune_vocabulary(old, TRAINING, size=size)
        new = PieceTokenizer.from_str(pruned.tokenizer_json)
        losses.append(pruning_loss(before, new, TRAINING).changed)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] == 0


def test_a_piece_needs_its_parts() -> None:
    """ "abcd" is made of "ab" and "cd" alone, although "abc" and "d" would make it, too."""
    pieces = ["<unk>", *"abcd", "ab", "cd", "abc", "abcd", "bc", "da"]
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("ab", "c"), ("abc", "d"), ("d", "a")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    pruned = prune_vocabulary(tokenizer.to_str(), ["abcd"])
    assert set(pruned.dropped) == {"abc", "bc", "da"}
    assert json.loads(pruned.tokenizer_json)["model"]["merges"] == [
        ["a", "b"],
        ["c", "d"],
        ["ab", "cd"],
    ]


def test_the_cost_of_an_unknown_character_stays() -> None:
    """The worst piece sets it. Without "zz", "ax" and an unknown piece would be cheaper."""
    scored = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -9.0), ("zz", -20.0)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    pruned = prune_vocabulary(tokenizer.to_str(), ["ab"])
    assert "zz" not in pruned.dropped
    assert json.loads(pruned.tokenizer_json)["model"]["vocab"][-1] == ["zz", -20.0]


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Strip(),  # DeBERTa-v3
        normalizers.Strip(left=False, right=True),  # XLM-R
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ],
    ids=["strip", "strip_right", "prepend"],
)
def test_normalizers_of_the_ends_of_a_text(normalizer: normalizers.Normalizer) -> None:
    """Pieces that begin with a space, or are one, occur in text nevertheless."""
    scored = [
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("▁the", -3.0),
        ("▁cat", -3.5),
        *((c, -5.0) for c in "abc"),
    ]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    pruned = prune_vocabulary(tokenizer.to_str(), ["the"])
    assert pruned.dropped == {"▁cat": 0}
    assert prune_vocabulary(tokenizer.to_str(), ["the"], size=len(scored)).dropped == {}


def with_gaps(added: list[str]) -> str:
    """BPE whose ids have gaps, and pieces outside its model."""
    vocab = {"<unk>": 0, "a": 3, "b": 4, "ab": 7, "c": 9, "abc": 12}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("ab", "c")], unk_token="<unk>"))
    for piece in added:
        tokenizer.add_tokens([piece])
    return tokenizer.to_str()


def test_an_added_piece_in_a_gap() -> None:
    """`tokenizers` numbers it after all others of the smaller vocabulary."""
    old = with_gaps(["<x>"])
    texts = ["abc <x> ab", "d<x>"]
    assert PieceTokenizer.from_str(old).read_vocabulary()["<x>"] == 6
    pruned = prune_vocabulary(old, texts)
    check_same(old, pruned.tokenizer_json, pruned.kept_ids, texts)
    assert pruned.kept_ids.tolist() == [0, 3, 4, 7, 9, 12, 6]


def test_ids_that_tokenizers_ignores() -> None:
    """It numbers added pieces itself, whatever the file says."""
    content = json.loads(unigram().to_str())
    n = len(content["model"]["vocab"])
    content["added_tokens"] += [{**content["added_tokens"][0], "id": 999, "content": "<x>"}]
    old = json.dumps(content)
    pruned = prune_vocabulary(old, ["a"])
    assert PieceTokenizer.from_str(old).read_vocabulary()["<x>"] == n
    assert pruned.kept_ids[-1] == n


def test_two_pieces_with_one_id() -> None:
    """The first added one takes 6, the next ones 7 and so on, which the model has."""
    old = with_gaps(["<x>", "<y>"])
    with pytest.raises(WeightsError, match=r"one id to two pieces.* Leave vocabulary pruning out"):
        prune_vocabulary(old, ["abc"])


def test_nothing_is_dropped(old: str) -> None:
    """Characters that fill up are not told to be missing, nor any pieces."""
    n_pieces = len(read_kind(old).pieces)
    pruned = prune_vocabulary(old, ["a"], size=n_pieces)
    if pruned.dropped:  # pieces that cannot occur
        assert {len(piece) for piece in pruned.dropped} != {1}
    else:
        assert pruned.missing_share == 0
    assert pruned.dropped_characters == {}


def test_estimate_of_missing_pieces() -> None:
    """Good's estimate against the text that it is an estimate for."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(5000)])
    weights = 1 / np.arange(1, 5001)
    texts = [" ".join(rng.choice(words, 50, p=weights / weights.sum())) for _ in range(400)]
    vocab = {word: i for i, word in enumerate(["[UNK]", *words.tolist()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    old = tokenizer.to_str()
    for options in ({}, {"min_count": 3}, {"size": 500}):
        pruned = prune_vocabulary(old, texts[:200], **options)
        new = PieceTokenizer.from_str(pruned.tokenizer_json)
        loss = pruning_loss(PieceTokenizer.from_str(old), new, texts[200:])
        assert pruned.missing_share == pytest.approx(loss.unknown_after, rel=0.15)


def test_characters_of_unused_scripts() -> None:
    """Of each script that the text uses all stay, of a large set the ones that it has."""
    han = [chr(0x4E00 + i) for i in range(LARGEST_ALPHABET + 1)]
    cyrillic = "абвгд"
    single = dict(enumerate([*"abcxyz.!", *cyrillic, *han]))
    kept = choose_characters(single, {"a": 990, han[3]: 10, "б": 0})
    assert {single[i] for i in kept} == {*"abcxyz.!", han[3]}
    assert count_dropped(single, kept) == {"CJK": LARGEST_ALPHABET, "CYRILLIC": 5}
    kept = choose_characters(single, {"a": 990, "б": 1})
    assert {*cyrillic} <= {single[i] for i in kept}
    kept = choose_characters(single, {"a": 9900, "б": 1})
    assert {*cyrillic} & {single[i] for i in kept} == {"б"}
    assert [script(c) for c in "aЖ中1!"] == ["LATIN", "CYRILLIC", "CJK", "Nd", "Po"]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "albert", "modernbert", "deberta-v2"])
def test_a_pruned_pipeline_gives_the_same_vectors(
    family: str, encoder_dirs: dict[str, Path], tmp_path: Path
) -> None:
    from spacy_distil.engines.files import CONFIG, TOKENIZER, WEIGHTS, write_files
    from spacy_distil.students.vocabulary import prune_encoder

    directory = encoder_dirs[family]
    files = {name: (directory / name).read_bytes() for name in (CONFIG, WEIGHTS, TOKENIZER)}
    seen = list(SENTENCES[:3])
    pruned = prune_vocabulary(files[TOKENIZER].decode(), seen)
    assert len(pruned.dropped) > 10
    write_files(tmp_path / "pruned", prune_encoder(files, pruned))
    nlp, small = make_nlp(directory), make_nlp(tmp_path / "pruned")
    for one, other in zip(small.pipe(seen), nlp.pipe(seen), strict=True):
        np.testing.assert_allclose(one.tensor, other.tensor, rtol=0, atol=1e-6)
    encoder = get_encoder(small.get_pipe("transformer").model)
    assert encoder.loaded.config["vocab_size"] == pruned.n_kept


@pytest.mark.parametrize(
    ("options", "text", "setting"),
    [({"size": 5}, "ba be", "size = 5"), ({"min_count": 1}, "unknown", "min_count = 1")],
)
def test_special_pieces_alone_are_no_vocabulary(
    options: dict[str, int], text: str, setting: str, tmp_path: Path
) -> None:
    write_teacher(tmp_path, "bert", head=False, layers=1)
    teacher = load_teacher(str(tmp_path))
    with pytest.raises(ConfigError, match=f"With {setting}, .* 5 special pieces and no others"):
        prune_teacher(teacher, [text], VocabularySettings(**options))
    # A single piece is enough, also to measure the speed.
    small, pruned = prune_teacher(teacher, ["ba"], VocabularySettings(min_count=1))
    assert pruned.n_kept == 6
    assert cost_table(teacher.model, small.model, pieces_per_word=1.0, threads=1)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "electra"])
def test_a_teacher_predicts_among_the_kept_pieces(family: str, tmp_path: Path) -> None:
    """Its logits are the old ones of the kept pieces."""
    write_encoder(tmp_path / "bare", family)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "bare")
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "teacher")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "bare").save_pretrained(
        tmp_path / "teacher"
    )
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert teacher.has_mlm_head
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    texts = list(SENTENCES[:3])
    small, pruned = prune_teacher(teacher, texts, VocabularySettings(min_count=1))
    assert 10 < pruned.n_kept < pruned.n_before - 10
    assert not any(p.requires_grad for p in small.model.parameters())
    assert not small.model.training
    for text in texts:
        new, old = (t.tokenizer(text, return_tensors="pt") for t in (small, teacher))
        assert pruned.kept_ids[new["input_ids"]].tolist() == old["input_ids"].tolist()
        with torch.no_grad():
            expected = teacher.model(**old).logits[..., pruned.kept_ids]
            torch.testing.assert_close(small.model(**new).logits, expected, rtol=0, atol=1e-5)
            head = masked_lm_head(small.model)
            assert head is not None
            hidden = small.model.base_model(**new).last_hidden_state
            logits = head.decode(head.transform(hidden[0]))
            torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-5)
    for name, value in teacher.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    names = load_file(tmp_path / "teacher" / "model.safetensors")
    assert any(len(weights) == pruned.n_before for weights in names.values())
