"""Random Unicode through tokenizers, alignment, windows, batches and pooling, against loops over
characters that know none of them.

The references split texts themselves for WordPiece and byte-level BPE. For Unigram, whose
normalization changes neighbouring characters together, they take normalized words and offsets from
`tokenizers`, and find the pieces of each word.
"""

from __future__ import annotations

import json
import random
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import spacy
from spacy.tokens import Doc
from thinc.api import NumpyOps
from tokenizers import Tokenizer, normalizers

from spacy_distil.encoding import EncodedDocs, PieceTokenizer, encode_docs, make_batches
from spacy_distil.encoding.pooling import POOLINGS
from tests.campaigns.outcome import Deadline, Outcome
from tests.odd_input.texts import PARTS
from tests.util import SENTENCES, build_tokenizer

PROMISE = (
    "Pieces, alignment, windows and pooled token vectors of random Unicode equal the results of "
    "loops over characters, for WordPiece, byte-level BPE and Unigram. n strings for each."
)
SHORT = 600

BATCH = 50
# "cls" takes the vectors of special pieces, which have no characters.
OF_PIECES = tuple(pooling for pooling in POOLINGS if pooling != "cls")
# The characters that Unicode calls white space.
WHITE = {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)}
WHITE |= {0x2028, 0x2029, 0x202F, 0x205F, 0x3000}

# Ranges of characters, from which a part draws all of its characters.
RANGES = (
    *((0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x52F), (0x1E00, 0x1FFF)),  # alphabets
    *((0x300, 0x36F), (0x1AB0, 0x1AFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F)),  # combining marks
    *((0x0, 0x1F), (0x7F, 0x9F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F)),  # control
    *((0x590, 0x6FF), (0x700, 0x8FF), (0xFB1D, 0xFDFF)),  # right to left
    *((0x900, 0xDFF), (0xE00, 0xFFF)),  # scripts with vowel signs
    *((0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1100, 0x11FF)),  # CJK, jamo
    *((0xD7FB, 0xD7FF), (0xE000, 0xE010), (0xFFF0, 0xFFFF), (0x10000, 0x1000F)),  # near surrogates
    *((0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0xFE00, 0xFE0F), (0xE0020, 0xE007F)),  # emoji, tags
    *((0x2000, 0x206F), (0x2100, 0x218F), (0x2460, 0x24FF), (0xFF00, 0xFFEF)),  # compatibility
    *((0x1D400, 0x1D7FF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1D), (0x10FFF0, 0x10FFFF)),
)
EMOJI = ("👩", "👨", "👧", "❤", "🏳", "🌈", "💻", "🏽", "🏿")
SPACES = (" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2009", "\u1680", "\x1c", "\x0b")


# Texts


def draw_part(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(PARTS)
    if kind < 0.4:
        return rng.choice(rng.choice(SENTENCES).split())
    if kind < 0.45:
        return "\u200d".join(rng.choices(EMOJI, k=rng.randint(2, 5)))
    if kind < 0.5:
        return rng.choice("abe東\u043eἀ") * rng.choice((1, 2, 30, 99, 100, 101, 250))
    low, high = rng.choice(RANGES)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))


def draw_doc(nlp: Any, rng: random.Random) -> Doc:
    """Draw a text, split by spaCy's tokenizer or into tokens that are cut anywhere."""
    text = ""
    for _ in range(rng.choice((1, 2, 4, 8, 16))):
        text += draw_part(rng) + rng.choice(("", "", " ", " ", rng.choice(SPACES)))
    if rng.random() < 0.5:
        return nlp.make_doc(text)
    cuts = {rng.randint(1, max(1, len(text) - 1)) for _ in range(rng.randint(0, 12))}
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    words = [text[a:b] for a, b in pairwise(bounds) if a < b]
    return Doc(nlp.vocab, words=words, spaces=[rng.random() < 0.5 for _ in words])


# The reference


class Piece(NamedTuple):
    """A piece, and the characters of the text that it is made of: start and end."""

    id: int
    start: int
    end: int


Splitter = Callable[[str], list[Piece]]


def wordpiece(tokenizer: Tokenizer) -> Splitter:
    """Normalize character by character, split at spaces and punctuation, and take the longest piece
    that fits, again and again.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()

    @cache
    def normalized(character: str) -> str:
        return tokenizer.normalizer.normalize_str(character)

    @cache
    def is_separate(character: str) -> bool:
        return len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{character}a")) == 3

    def words(text: str) -> Iterator[list[tuple[str, int]]]:
        word: list[tuple[str, int]] = []
        for i, original in enumerate(in_canonical_order(text)):
            for character in normalized(original):
                if ord(character) in WHITE or is_separate(character):
                    if word:
                        yield word
                    word = []
                    if ord(character) not in WHITE:
                        yield [(character, i)]
                else:
                    word.append((character, i))
        if word:
            yield word

    def pieces(word: list[tuple[str, int]]) -> list[Piece]:
        found = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = "##" * bool(start) + "".join(c for c, _ in word[start:end])
                if piece in vocab and len(word) <= 100:
                    found.append(Piece(vocab[piece], word[start][1], word[end - 1][1] + 1))
                    start = end
                    break
            else:
                return [Piece(vocab["[UNK]"], word[0][1], word[-1][1] + 1)]
        return found

    return lambda text: [piece for word in words(text) for piece in pieces(word)]


def in_canonical_order(text: str) -> str:
    """Sort each run of combining marks, as normalization does, with the classes that `tokenizers`
    knows. It gives the marks the places in their new order. Most have no piece.
    """
    nfd = normalizers.NFD()
    parts = []
    for _, run in groupby(text, key=lambda c: unicodedata.category(c)[0] in "MC"):
        marks = "".join(run)
        ordered = nfd.normalize_str(marks)
        parts.append(ordered if sorted(ordered) == sorted(marks) else marks)
    return "".join(parts)


def byte_level(tokenizer: Tokenizer) -> Splitter:
    """Split at changes between letters, numbers, spaces and others, and merge bytes."""
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    ranks = {tuple(merge): i for i, merge in enumerate(model["merges"])}
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [i for i in range(256) if i not in printable]
    spelling = {i: chr(i) for i in printable} | {i: chr(256 + n) for n, i in enumerate(others)}

    @cache
    def kind(character: str) -> str:
        if ord(character) in WHITE:
            return "space"
        for name, other in (("letter", "a"), ("number", "1")):
            if len(tokenizer.pre_tokenizer.pre_tokenize_str(other + character)) == 1:
                return name
        return "other"

    def words(text: str) -> Iterator[tuple[int, int]]:
        i = 0
        while i < len(text):
            start = i
            for suffix in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
                if text.startswith(suffix, i):
                    i += len(suffix)
                    break
            else:
                if text[i] == " " and i + 1 < len(text) and kind(text[i + 1]) != "space":
                    i += 1
                here = kind(text[i])
                while i < len(text) and kind(text[i]) == here:
                    i += 1
                # The last space before a word is left over.
                if here == "space" and i < len(text) and i - start > 1:
                    i -= 1
            yield start, i

    def pieces(text: str, start: int, end: int) -> list[Piece]:
        parts = [
            (spelling[byte], i, i + 1) for i in range(start, end) for byte in text[i].encode("utf8")
        ]
        while len(parts) > 1:
            rank, i = min(
                (ranks.get((left[0], right[0]), len(ranks)), i)
                for i, (left, right) in enumerate(pairwise(parts))
            )
            if rank == len(ranks):
                break
            left, right = parts[i : i + 2]
            parts[i : i + 2] = [(left[0] + right[0], left[1], right[2])]
        return [Piece(vocab[name], begin, stop) for name, begin, stop in parts]

    return lambda text: [piece for bounds in words(text) for piece in pieces(text, *bounds)]


def unigram(tokenizer: Tokenizer) -> Splitter:
    """Find the most probable pieces of each word that `tokenizers` makes of a text."""
    model = json.loads(tokenizer.to_str())["model"]
    scores = {piece: (score, i) for i, (piece, score) in enumerate(model["vocab"])}
    unknown = model["unk_id"]
    worst = min(score for score, _ in scores.values()) - 10
    longest = max(map(len, scores))

    def best_pieces(word: str) -> list[tuple[int, int]]:
        """Return the id and the length of each piece."""
        best: list[tuple[float, int, int]] = [(0.0, 0, 0)]
        for end in range(1, len(word) + 1):
            options = []
            for start in range(max(0, end - longest), end):
                if word[start:end] in scores:
                    score, i = scores[word[start:end]]
                    options.append((best[start][0] + score, start, i))
            if word[end - 1] not in scores:
                options.append((best[end - 1][0] + worst, end - 1, unknown))
            best.append(max(options))
        found: list[tuple[int, int]] = []
        end = len(word)
        while end:
            _, start, i = best[end]
            if found and i == unknown == found[0][0]:
                found[0] = (unknown, found[0][1] + end - start)
            else:
                found.insert(0, (i, end - start))
            end = start
        return found

    special = {
        i: [scores[character][1] for character in piece.content]
        for i, piece in tokenizer.get_added_tokens_decoder().items()
        if piece.special and i != unknown and all(c in scores for c in piece.content)
    }

    def split(text: str) -> list[Piece]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        expected = [i for word, _ in words for i, _ in best_pieces(word)]
        if len(expected) != len(encoding.ids):
            return [Piece(i, 0, 0) for i in expected]
        found = []
        for i, (start, end) in zip(expected, encoding.offsets, strict=True):
            spelled = special.get(i, [i])
            exact = len(spelled) > 1 and end - start == len(spelled)
            for n, character in enumerate(spelled):
                bounds = (start + n, start + n + 1) if exact else (start, end)
                found.append(Piece(character, *bounds))
        return found

    return split


def given(tokenizer: Tokenizer) -> Splitter:
    """Take the pieces of `tokenizers`."""

    def split(text: str) -> list[Piece]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return [Piece(i, *bounds) for i, bounds in zip(encoding.ids, encoding.offsets, strict=True)]

    return split


# By family: how a text becomes pieces, and which characters at the ends of a piece count as spaces,
# which belong to no piece. RoBERTa has pieces for line breaks and the like, but none of its own for
# the space before a word.
SPLITTERS: dict[str, tuple[Callable[[Tokenizer], Splitter], Callable[[str], bool]]] = {
    "bert": (wordpiece, str.isspace),
    "roberta": (byte_level, " ".__eq__),
    "modernbert": (given, str.isspace),
    "xlm-roberta": (unigram, lambda character: character.isspace() or character == "▁"),
}


def reference_pieces(
    text: str, split: Splitter, is_space: Callable[[str], bool], spaces: Sequence[int]
) -> list[Piece]:
    """Split a text into pieces with the characters that belong to them, as documented: neither
    spaces at the ends nor a piece of spaces alone belongs to a token, and offsets never decrease.

    spaces: ids of the pieces that stand for spaces alone, whatever their offsets are.
    """
    pieces = []
    for piece in split(text):
        start, end = piece.start, piece.end
        while start < end and is_space(text[start]):
            start += 1
        while start < end and is_space(text[end - 1]):
            end -= 1
        pieces.append(Piece(piece.id, start, start if piece.id in spaces else end))
    lowest, highest = len(text), 0
    for i in reversed(range(len(pieces))):
        if pieces[i].start < pieces[i].end:
            lowest = min(lowest, pieces[i].start)
            pieces[i] = pieces[i]._replace(start=lowest)
    for i, piece in enumerate(pieces):
        if piece.start < piece.end:
            highest = max(highest, piece.end)
            pieces[i] = piece._replace(end=highest)
    return pieces


def reference_tokens(doc: Doc, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Find the first and the last piece of each token that share a character with it, end
    exclusive; (0, 0) for a token without a piece.
    """
    found = []
    for token in doc:
        start, end = token.idx, token.idx + len(token)
        own = [i for i, piece in enumerate(pieces) if max(start, piece.start) < min(end, piece.end)]
        found.append((own[0], own[-1] + 1) if own else (0, 0))
    return found


def reference_windows(
    n_pieces: int, tokens: Sequence[tuple[int, int]], capacity: int, overlap: int
) -> list[tuple[int, int]]:
    """Cut pieces into windows, each as long as possible."""
    if n_pieces <= capacity:
        return [(0, n_pieces)] if n_pieces else []
    starts = {first for first, last in tokens if first < last}
    inside = {i for first, last in tokens for i in range(first + 1, last)}
    cuts = starts - inside
    windows: list[tuple[int, int]] = []
    start = 0
    while start + capacity < n_pieces:
        end = max((cut for cut in cuts if start < cut <= start + capacity), default=0)
        end = end or start + capacity  # a token that is longer than a window
        if windows and end <= windows[-1][1]:
            start = end
            continue
        windows.append((start, end))
        latest = max(end - overlap, start + 1)
        start = max((cut for cut in cuts if start < cut <= latest), default=end)
    return [*windows, (start, n_pieces)]


# The encoder: a function of a piece, its place and its window, (n_rows, 4)


def hidden_states(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RETURNS: (n_windows, length, 4)."""
    places = np.arange(ids.shape[1])[None, :]
    totals = (ids * mask * (places + 1)).sum(axis=1, keepdims=True) % 101
    columns = [ids % 89, places + 0 * ids, (ids * (places + 7)) % 97, totals + 0 * ids]
    return np.stack(columns, axis=2).astype("f")


def encode(
    docs: Sequence[Doc], tokenizer: PieceTokenizer, window: int, overlap: int, pooling: Any
) -> tuple[EncodedDocs, np.ndarray]:
    """Encode docs with our code. RETURNS: (encoded, token vectors of all docs)."""
    encoded = encode_docs(docs, tokenizer, window=window, overlap=overlap, pooling=pooling)
    rows = np.zeros((encoded.pooling.n_rows, 4), dtype="f")
    for batch in make_batches(
        encoded.windows,
        prefix=tokenizer.prefix,
        suffix=tokenizer.suffix,
        pad_id=0,
        max_batch_pieces=200,
    ):
        states = hidden_states(batch.ids, batch.mask)
        rows[batch.rows] = states.reshape(-1, 4)[batch.positions]
    tokens, _ = encoded.pooling.forward(NumpyOps(), rows)
    return encoded, tokens


def reference_vectors(
    pieces: Sequence[Piece],
    tokens: Sequence[tuple[int, int]],
    windows: Sequence[tuple[int, int]],
    tokenizer: PieceTokenizer,
    pooling: str,
) -> np.ndarray:
    """RETURNS: (n_tokens, 4)."""
    vectors: list[list[np.ndarray]] = [[] for _ in pieces]
    for start, end in windows:
        ids = [*tokenizer.prefix, *(p.id for p in pieces[start:end]), *tokenizer.suffix]
        grid = np.array([ids])
        states = hidden_states(grid, np.ones_like(grid))[0]
        for i in range(start, end):
            vectors[i].append(states[len(tokenizer.prefix) + i - start])
    pooled = np.zeros((len(tokens), 4))
    for t, (first, last) in enumerate(tokens):
        own = [vector for i in range(first, last) for vector in vectors[i]]
        if own and pooling == "mean":
            pooled[t] = np.mean([np.mean(vectors[i], axis=0) for i in range(first, last)], axis=0)
        elif own and pooling == "sum":
            pooled[t] = np.sum(own, axis=0)
        elif own and pooling == "max":
            pooled[t] = np.max(own, axis=0)
        elif own:
            pooled[t] = own[0 if pooling == "first" else -1]
    return pooled


# The comparison


def compare(
    docs: Sequence[Doc],
    tokenizer: PieceTokenizer,
    reference: Callable[[str], list[Piece]],
    rng: random.Random,
) -> Iterator[tuple[int, str]]:
    """Yield the number of each doc with a difference, and describe it."""
    window, pooling = rng.choice((8, 12, 24, 48, 512)), rng.choice(OF_PIECES)
    capacity = window - tokenizer.n_special
    overlap = rng.randint(0, capacity // 2)
    settings = f"window {window}, overlap {overlap}, {pooling}"
    encoded, vectors = encode(docs, tokenizer, window, overlap, pooling)
    texts = [doc.text[:-1] if len(doc) and doc[-1].whitespace_ else doc.text for doc in docs]
    n_tokens = n_windows = n_pieces = 0
    for i, (doc, text, own) in enumerate(zip(docs, texts, tokenizer(texts), strict=True)):
        pieces = reference(text)
        tokens = reference_tokens(doc, pieces)
        windows = reference_windows(len(pieces), tokens, capacity, overlap)
        expected = reference_vectors(pieces, tokens, windows, tokenizer, pooling)
        here = slice(n_tokens, n_tokens + len(doc))
        first, last = encoded.first[here] - n_pieces, encoded.last[here] - n_pieces
        found = [(a, b) if a < b else (0, 0) for a, b in zip(first, last, strict=True)]
        cut = encoded.windows[n_windows : n_windows + encoded.n_windows[i]]
        own_pieces = [*map(Piece, own.ids.tolist(), own.starts.tolist(), own.ends.tolist())]
        ids = [[piece.id for piece in pieces[start:end]] for start, end in windows]
        problem = ""
        if [p.id for p in own_pieces] != [p.id for p in pieces]:
            problem = "pieces"
        elif characters(own_pieces) != characters(pieces):
            problem = "characters of pieces"
        elif found != tokens:
            problem = "alignment"
        elif [window.tolist() for window in cut] != ids:
            problem = "windows"
        elif not np.allclose(vectors[here], expected, rtol=1e-4, atol=1e-3):
            problem = "vectors"
        if problem:
            yield i, f"{problem} ({settings}): {[token.text for token in doc]!r}"
        n_tokens += len(doc)
        n_windows += encoded.n_windows[i]
        n_pieces += len(own.ids)


def characters(pieces: Sequence[Piece]) -> list[tuple[int, int] | None]:
    """Start and end of each piece that has characters."""
    return [(piece.start, piece.end) if piece.start < piece.end else None for piece in pieces]


def run(n: int, seed: int, deadline: Deadline) -> Outcome:
    """Compare n strings for each of the tokenizers."""
    outcome = Outcome()
    nlp = spacy.blank("xx")
    start = time.monotonic()
    for family, (make_splitter, is_space) in SPLITTERS.items():
        tokenizer = PieceTokenizer(build_tokenizer(family))
        raw = build_tokenizer(family)
        raw.encode_special_tokens = True
        spaces = [i for i in [raw.token_to_id("▁")] if i is not None]
        split = make_splitter(raw)
        reference = partial(reference_pieces, split=split, is_space=is_space, spaces=spaces)
        for begin in range(0, n, BATCH):
            if deadline.passed():
                break
            numbers = range(begin, min(n, begin + BATCH))
            docs = [draw_doc(nlp, random.Random(f"{seed} {i}")) for i in numbers]
            rng = random.Random(f"{seed} {family} {begin}")
            for i, problem in compare(docs, tokenizer, reference, rng):
                outcome.failures.append(f"seed {seed}, {family}, case {numbers[i]}: {problem}")
            outcome.cases += len(docs)
            if len(nlp.vocab) > 100_000:
                nlp = spacy.blank("xx")
    outcome.figures["seconds"] = f"{time.monotonic() - start:.0f}"
    return outcome
