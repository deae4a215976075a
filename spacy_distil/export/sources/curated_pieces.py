"""The piece encoders of spacy-curated-transformers as `tokenizer.json`.

They read each token by itself, and only ByteBpeEncoder reads the space before it. The tokenizers
made here are for `pieces_from = "tokens"`. For the other encoders they drop the space. Text as a
whole gets the pieces of its words, so that pieces can be counted in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from curated_tokenizers import ByteBPEProcessor, SentencePieceProcessor, WordPieceProcessor
from spacy_curated_transformers.tokenization import wordpiece_encoder
from thinc.api import Model, Ragged
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from spacy_distil.errors import require

KINDS = (
    "BertWordpieceEncoder, WordpieceEncoder, ByteBpeEncoder, SentencepieceEncoder, "
    "XlmrSentencepieceEncoder, CamembertSentencepieceEncoder or CharEncoder"
)
FORMS = {
    None: None,
    "NFC": normalizers.NFC,
    "NFD": normalizers.NFD,
    "NFKC": normalizers.NFKC,
    "NFKD": normalizers.NFKD,
}
# A longer word is unknown: the time to find its pieces grows with the cube of its length.
MAX_WORD = 1000
# Types of pieces and models in SentencePiece's files.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(2, 6)
UNIGRAM = 1
# The score of a user-defined piece: better than any other.
USER_SCORE = -0.1
# The padding of XLM-R and CamemBERT, which SentencePiece does not know.
FAIRSEQ_PAD = 1
# SentencePiece writes this for a space.
SPACE = "▁"

_SPECIAL = re.compile(r"\[\w+\]|<\w+>")
# A sigma that ends a word. `tokenizers` lowercases each character by itself. The limits keep the
# time for hostile text linear.
_FINAL_SIGMA = normalizers.Replace(
    Regex(r"\p{Cased}\p{Case_Ignorable}{0,30}\KΣ(?!\p{Case_Ignorable}{0,30}\p{Cased})"), "ς"
)


class UnknownPieces(ValueError):
    """A piece encoder that cannot be converted. The message goes on after its component's name."""


def build_tokenizer(encoder: Model) -> Tokenizer:
    """Build the tokenizer that gives the same ids for a token as a piece encoder.

    Raises UnknownPieces if there is none.
    """
    # SentencePiece may have a layer behind it that changes the ids.
    inner = encoder.get_ref("encoder") if encoder.has_ref("encoder") else encoder
    build = BUILDERS.get(inner.name)
    if build is None:
        raise UnknownPieces(f"has the piece encoder {inner.name!r}; expected {KINDS}")
    return build(encoder)


def note_on_pieces(encoder: Model) -> str:
    """Describe the tokens that get other pieces than from a piece encoder; empty for none."""
    if encoder.name == "char_encoder":
        return "made pieces of whitespace tokens (CharEncoder); now they have zero vectors"
    if encoder.name == "wordpiece_encoder" and (odd := _WordPieces(encoder).odd):
        shown = ", ".join(map(repr, sorted(odd)[:5]))
        return (
            f"has no pieces of their own, at the begin of a word or inside, for {len(odd):,} "
            f"characters ({shown}{' ...' if len(odd) > 5 else ''}) that are in other pieces; a "
            "word that cannot be completed for lack of one becomes unknown as a whole"
        )
    return ""


def _bert(encoder: Model) -> Tokenizer:
    return _WordPieces(encoder).build()


class _WordPieces:
    """A WordPiece encoder.

    It takes the longest piece again and again. Where none fits, the rest of the word is one unknown
    piece. In `tokenizers` the whole word is. So a word is cut before the first character that is in
    no piece.

    pieces: the vocabulary, in order of the ids.
    splits: whether punctuation is split off, as BERT does.
    alphabet: the characters of all pieces that can be found in a word. The name of a special piece
        is none of them.
    odd: those among them that do not always have a piece that begins with them.
    """

    def __init__(self, encoder: Model) -> None:
        self._attrs = encoder.attrs
        processor: WordPieceProcessor = encoder.attrs["wordpiece_processor"]
        self.pieces: list[str] = processor.to_list()
        self.splits = encoder.attrs["preprocess"] is wordpiece_encoder._bert_preprocess
        if self.pieces in ([], [""]):  # nothing is loaded as the latter
            raise UnknownPieces("has no vocabulary: the pipeline was not trained")
        if {"", "##"} & {*self.pieces}:
            raise UnknownPieces("has an empty piece in its vocabulary, which cannot be converted")
        words = [p.removeprefix("##") for p in self.pieces if not _SPECIAL.fullmatch(p)]
        if self.splits:
            words = [word for word in words if len(word) == 1 or not any(map(_splits_off, word))]
        self.alphabet = {character for word in words for character in word}
        known = {*self.pieces}
        self.odd = {
            character
            for character in self.alphabet
            if not (self.splits and _splits_off(character))
            and not {character, f"##{character}"} <= known
        }

    def build(self) -> Tokenizer:
        attrs = self._attrs
        steps = []
        if attrs["lowercase"]:
            steps += [_FINAL_SIGMA, normalizers.Lowercase()]
        if attrs["strip_accents"]:
            marks = _class(c for c in _CHARACTERS if unicodedata.category(c) == "Mn")
            steps += [normalizers.NFD(), normalizers.Replace(Regex(f"[{marks}]"), "")]
        alphabet = _class(self.alphabet)
        unknown = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in self.alphabet)
        split_off = _class(filter(_splits_off, _CHARACTERS)) if self.splits else ""
        cut = Regex(rf"[^{alphabet}{split_off}\s][^{split_off}\s]*")
        steps.append(normalizers.Replace(cut, unknown))
        # The first of two equal pieces counts.
        vocab = _fill({piece: i for i, piece in reversed([*enumerate(self.pieces)])})
        tokenizer = Tokenizer(
            models.WordPiece(vocab, unk_token=attrs["unk_piece"], max_input_chars_per_word=MAX_WORD)
        )
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\s+"), "removed"),
                pre_tokenizers.Split(Regex(f"[{split_off}{_class(unknown)}]"), "isolated"),
            ]
        )
        return _with_ends(
            tokenizer, attrs["bos_piece"], attrs["eos_piece"], attrs["unk_piece"], vocab=vocab
        )


def _byte_bpe(encoder: Model) -> Tokenizer:
    attrs = encoder.attrs
    processor: ByteBPEProcessor = attrs["byte_bpe_processor"]
    vocab = processor.vocab
    if not vocab:
        raise UnknownPieces("has no vocabulary: the pipeline was not trained")
    try:
        model = models.BPE(vocab, processor.merges, unk_token=attrs["unk_piece"])
    except Exception as error:  # `tokenizers` has no class of its own for it
        raise UnknownPieces(f"has a vocabulary that tokenizers refuses ({error})") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _with_ends(
        tokenizer, attrs["bos_piece"], attrs["eos_piece"], attrs["unk_piece"], vocab=vocab
    )


def _characters(encoder: Model) -> Tokenizer:
    attrs = encoder.attrs
    if attrs["vocab"] is None:
        raise UnknownPieces("has no vocabulary: the pipeline was not trained")
    if attrs["normalize"] not in FORMS:
        raise UnknownPieces(f"has the normal form {attrs['normalize']!r}, which Unicode lacks")
    vocab = dict(attrs["vocab"])
    if len({*vocab.values()}) < len(vocab):
        raise UnknownPieces("has several characters with the same number in its vocabulary")
    form = FORMS[attrs["normalize"]]
    tokenizer = Tokenizer(models.WordLevel(_fill(vocab), unk_token=attrs["unk_piece"]))
    no_space = normalizers.Replace(Regex(r"\s+"), "")
    tokenizer.normalizer = normalizers.Sequence([no_space, *([form()] if form else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return _with_ends(
        tokenizer, attrs["bos_piece"], attrs["eos_piece"], attrs["unk_piece"], vocab=vocab
    )


def _sentencepiece(encoder: Model) -> Tokenizer:
    processor: SentencePieceProcessor = encoder.get_ref("encoder").attrs["sentencepiece_processor"]
    data = processor.to_protobuf()
    if not data:
        raise UnknownPieces("has no SentencePiece model: the pipeline was not trained")
    model = _parse(data)
    trainer, spec = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != UNIGRAM:
        raise UnknownPieces(
            f"has a SentencePiece model of type {trainer.model_type}; expected 1 (unigram)"
        )
    if trainer.byte_fallback or trainer.treat_whitespace_as_suffix or not spec.escape_whitespaces:
        raise UnknownPieces(
            "has a SentencePiece model with byte_fallback, treat_whitespace_as_suffix or without "
            "escape_whitespaces, which cannot be converted"
        )
    if min(processor.bos_id(), processor.eos_id(), processor.unk_id()) < 0:
        raise UnknownPieces("has a SentencePiece model without <s>, </s> or <unk>")
    number = np.arange(len(model.pieces))
    for layer in encoder.layers[1:]:
        # Changes SentencePiece's ids to fairseq's.
        ragged = Ragged(number, np.ones(len(number), dtype="i"))  # type: ignore[arg-type]
        number = layer.predict([ragged])[0].dataXd
    # A piece with a space is never found, because spaces are replaced.
    vocab = [(f" {i}", 0.0) for i in range(int(max(number)) + 1)]
    if len(vocab) > len(number):
        vocab[FAIRSEQ_PAD] = ("<pad>", 0.0)
    for i, piece in zip(number, model.pieces, strict=True):
        name = f"{piece.piece} " if piece.type == UNUSED else piece.piece
        vocab[i] = (name, USER_SCORE if piece.type == USER_DEFINED else piece.score)
    ids = [int(number[i]) for i in (processor.bos_id(), processor.eos_id(), processor.unk_id())]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=ids[2], byte_fallback=False))
    # Which PieceTokenizer spells out where they are text.
    hidden = [piece.piece for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in hidden]
    )
    prefix = [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix else []
    no_space = normalizers.Replace(Regex(r"\A "), "")
    steps = [no_space, *(() if spec.remove_extra_whitespaces else prefix)]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Where nothing is left, there is no prefix either.
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            *prefix,
        ]
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"(?<!{SPACE}){SPACE}+\z"), ""))
    tokenizer.normalizer = normalizers.Sequence(steps)
    names = [processor.id_to_piece(i) for i in (processor.bos_id(), processor.eos_id())]
    return _with_ends(tokenizer, *names, vocab=dict(zip(names, ids, strict=False)))


def _parse(data: bytes) -> Any:
    """Parse a SentencePiece model."""
    require("google.protobuf", extra="train", purpose="A SentencePiece model")
    from transformers.convert_slow_tokenizer import import_protobuf

    return import_protobuf().ModelProto.FromString(data)


def _with_ends(
    tokenizer: Tokenizer, begin: str, end: str, *others: str, vocab: dict[str, int]
) -> Tokenizer:
    """Add the special pieces at both ends of a window. Raises UnknownPieces if one is missing."""
    for piece in (begin, end, *others):
        if piece not in vocab:
            raise UnknownPieces(f"has no piece {piece!r} in its vocabulary")
    # RoBERTa and families like it put two pieces between two texts.
    between = [end, end] if begin == "<s>" else [end]
    tokenizer.post_processor = TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", *between, "$B:1", f"{end}:1"],
        special_tokens=[(piece, vocab[piece]) for piece in (begin, end)],
    )
    return tokenizer


def _fill(vocab: dict[str, int]) -> dict[str, int]:
    """Give the numbers without a piece one that no token has, as `tokenizers` wants all numbers."""
    missing = {*range(max(vocab.values()) + 1)} - {*vocab.values()}
    return {**vocab, **{f" {i}": i for i in missing}}


# All but the surrogates.
_CHARACTERS: Sequence[str] = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
_splits_off: Callable[[str], bool] = wordpiece_encoder._is_bert_punctuation


def _class(characters: Iterable[str]) -> str:
    """Write characters as ranges in a class of a regular expression."""
    numbers = np.array(sorted({ord(c) for c in characters}))
    if not len(numbers):
        return ""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return "".join(rf"\x{{{run[0]:x}}}-\x{{{run[-1]:x}}}" for run in runs)


BUILDERS: dict[str, Callable[[Model], Tokenizer]] = {
    "wordpiece_encoder": _bert,
    "byte_bpe_encoder": _byte_bpe,
    "char_encoder": _characters,
    "sentencepiece_encoder": _sentencepiece,
}
