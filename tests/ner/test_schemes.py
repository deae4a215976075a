"""The schemes against a search through all sequences of tags, and against definitions in words."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.errors import ConfigError
from spacy_distil.ner.decoding import MISSING, decode, doc_cuts, find_spans
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.ner.schemes import (
    PREFIXES,
    Scheme,
    decode_entities,
    from_biluo,
    merge_biluo,
    n_tags,
    tag_names,
    to_biluo,
)
from tests.ner.test_pipe import MODEL, entities, train

OTHERS: list[Scheme] = ["IOB2", "IOB1", "IO"]


def read_entities(
    tags: tuple[str, ...], scheme: Scheme, cuts: np.ndarray
) -> list[tuple[int, int, str]] | None:
    """The entities of tags, token by token; `None` if the tags are not valid."""
    found: list[tuple[int, int, str]] = []
    for t, tag in enumerate(tags):
        if tag == "O":
            continue
        prefix, label = tag.split("-")
        follows = bool(found) and not cuts[t] and found[-1][1:] == (t, label)
        if {"IOB2": "I", "IOB1": "B"}.get(scheme) == prefix and not follows:
            return None
        if follows and prefix == "I":
            found[-1] = (found[-1][0], t + 1, label)
        else:
            found.append((t, t + 1, label))
    return found


def rows_of(found: tuple[np.ndarray, ...]) -> list[tuple[int, ...]]:
    """Start, end and label of each entity."""
    return [tuple(row) for row in np.stack(found, axis=1).tolist()]


def brute_force(
    scores: np.ndarray, scheme: Scheme, cuts: np.ndarray, is_space: np.ndarray, fixed: np.ndarray
) -> tuple[float, list[tuple[int, int, str]]]:
    """The best score of the tokens that are no whitespace, and the entities that have it."""
    kept = np.flatnonzero(~is_space)
    between = [bool(cuts[a + 1 : b + 1].any()) for a, b in itertools.pairwise(kept)]
    inner = np.array([True, *between, True])
    names = tag_names(["A", "B"], scheme)
    best, entities = -np.inf, []
    for tags in itertools.product(range(len(names)), repeat=len(kept)):
        if any(fixed[t] and tag for t, tag in zip(kept, tags, strict=True)):
            continue
        for t, token in enumerate(kept):
            if fixed[token]:
                inner[t] = inner[t + 1] = True
        found = read_entities(tuple(names[tag] for tag in tags), scheme, inner)
        rows = [(row, tag) for row, tag in zip(kept, tags, strict=True) if not fixed[row]]
        score = sum(scores[row, tag] for row, tag in rows)
        if found is not None and score > best:
            best, entities = score, found
    return best, [(int(kept[i]), int(kept[j - 1]) + 1, label) for i, j, label in entities]


@pytest.mark.parametrize("scheme", OTHERS)
def test_decoding_is_exact(scheme: Scheme) -> None:
    rng = np.random.default_rng(0)
    for trial in range(120):
        lengths = [int(n) for n in rng.integers(0, 5, 3)]
        n = sum(lengths)
        if n > 7 or (scheme == "IOB1" and n > 6):
            continue
        scores = rng.normal(0, 2, (n, n_tags(2, scheme))).astype("f")
        cuts = doc_cuts(lengths)
        if trial % 2:
            cuts[:-1] |= rng.random(n) < 0.2
        is_space = rng.random(n) < (0.25 if trial % 3 else 0)
        fixed = rng.random(n) < (0.15 if trial % 5 == 0 else 0)
        # A fixed token has a cut on either side, also if it is whitespace.
        given = cuts.copy()
        given[:-1] |= fixed
        given[1:] |= fixed
        starts, ends, labels = decode_entities(scores, scheme, cuts, is_space=is_space, fixed=fixed)
        _, expected = brute_force(scores, scheme, given, is_space, fixed)
        found = [(int(i), int(j), "AB"[k]) for i, j, k in zip(starts, ends, labels, strict=True)]
        assert found == expected


@pytest.mark.parametrize("scheme", OTHERS)
def test_long_batches_equal_their_docs_alone(scheme: Scheme) -> None:
    """The search runs over many stretches of several lengths at once."""
    rng = np.random.default_rng(1)
    lengths = [int(n) for n in rng.integers(0, 60, 50)]
    scores = rng.normal(0, 1, (sum(lengths), n_tags(5, scheme)))
    scores[:, 0] += 1
    none = np.zeros(len(scores), dtype=bool)
    together = decode_entities(scores, scheme, doc_cuts(lengths), is_space=none, fixed=none)
    begin, alone = 0, []
    for n in lengths:
        own = slice(begin, begin + n)
        found = decode_entities(
            scores[own], scheme, doc_cuts([n]), is_space=none[own], fixed=none[own]
        )
        alone += [(i + begin, j + begin, k) for i, j, k in zip(*found, strict=True)]
        begin += n
    assert len(alone) > 100
    assert rows_of(together) == alone


def test_iob2_decodes_as_biluo_with_tied_scores() -> None:
    """A sequence of IOB2 is one of BILUO, whose tags have the scores of B and of I."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        lengths = [int(n) for n in rng.integers(1, 30, 4)]
        scores = rng.normal(0, 2, (sum(lengths), n_tags(3, "IOB2")))
        tied = np.concatenate(
            [scores[:, :1], scores[:, 1:].reshape(-1, 3, 2)[:, :, [0, 1, 1, 0]].reshape(-1, 12)],
            axis=1,
        )
        none = np.zeros(len(scores), dtype=bool)
        cuts = doc_cuts(lengths)
        found = decode_entities(scores, "IOB2", cuts, is_space=none, fixed=none)
        for own, other in zip(found, find_spans(decode(tied, cuts)), strict=True):
            np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("scheme", OTHERS)
def test_gold_tags_decode_to_the_gold_entities(scheme: Scheme) -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        lengths = [int(n) for n in rng.integers(0, 12, 4)]
        n = sum(lengths)
        cuts, none = doc_cuts(lengths), np.zeros(n, dtype=bool)
        tags = decode(rng.normal(0, 1, (n, n_tags(2))), cuts)
        spelled = from_biluo(tags, scheme, cuts, none)
        scores = np.eye(n_tags(2, scheme))[spelled]
        found = rows_of(decode_entities(scores, scheme, cuts, is_space=none, fixed=none))
        expected = rows_of(find_spans(tags))
        if scheme == "IO":  # which cannot tell neighbours apart
            for t in range(1, n):
                pair = [each for each in expected if t in each[:2]]
                if len(pair) == 2 and pair[0][2] == pair[1][2] and not cuts[t]:
                    expected[expected.index(pair[0])] = (pair[0][0], pair[1][1], pair[0][2])
                    expected.remove(pair[1])
        assert found == expected


def test_missing_tags_and_whitespace_are_missing() -> None:
    tags = np.array([MISSING, 1, 2, 3, 0, 4])
    is_space = np.array([False, False, True, False, True, False])
    cuts = doc_cuts([6])
    assert from_biluo(tags, "IOB2", cuts, is_space).tolist() == [-1, 1, -1, 2, -1, 1]
    assert from_biluo(tags, "IOB1", cuts, is_space).tolist() == [-1, 2, -1, 2, -1, 1]
    assert from_biluo(tags, "IO", cuts, is_space).tolist() == [-1, 1, -1, 1, -1, 1]
    assert from_biluo(tags, "BILUO", cuts, is_space).tolist() == tags.tolist()


@pytest.mark.parametrize("scheme", OTHERS)
def test_distributions_keep_their_labels(scheme: Scheme) -> None:
    rng = np.random.default_rng(4)
    lengths = [5, 0, 1, 9]
    probs = rng.dirichlet(np.full(n_tags(3, scheme), 0.3), sum(lengths))
    is_space = rng.random(len(probs)) < 0.2
    spelled = to_biluo(probs, scheme, doc_cuts(lengths), is_space)
    assert (spelled >= -1e-12).all()
    np.testing.assert_allclose(spelled.sum(axis=1), 1)
    by_label = spelled[:, 1:].reshape(-1, 3, 4).sum(axis=2)
    expected = probs[:, 1:].reshape(len(probs), 3, -1).sum(axis=2)
    np.testing.assert_allclose(by_label[~is_space], expected[~is_space])
    no_space = np.zeros(len(probs), dtype=bool)
    merged = merge_biluo(to_biluo(probs, scheme, doc_cuts(lengths), no_space), scheme="IO")
    np.testing.assert_allclose(merged[:, 1:], expected)


@pytest.mark.parametrize("scheme", OTHERS)
def test_sure_distributions_become_the_tags_of_the_entities(scheme: Scheme) -> None:
    """Of tags that are certain, BILUO's are certain too, and their entities the same."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        lengths = [int(n) for n in rng.integers(0, 12, 4)]
        n = sum(lengths)
        cuts, is_space = doc_cuts(lengths), rng.random(n) < 0.2
        names = tag_names(["A", "B"], scheme)
        biluo = decode(rng.normal(0, 1, (n, 9)), cuts, no_edge=is_space)
        tags = from_biluo(biluo, scheme, cuts, is_space)
        probs = np.eye(len(names))[np.maximum(tags, 0)]
        probs[is_space] = 1 / len(names)
        spelled = to_biluo(probs, scheme, cuts, is_space)
        assert np.isin(spelled, [0, 1]).all()
        none = np.zeros(n, dtype=bool)
        expected = decode_entities(probs, scheme, cuts, is_space=is_space, fixed=none)
        for own, other in zip(find_spans(spelled.argmax(axis=1)), expected, strict=True):
            np.testing.assert_array_equal(own, other)


def test_distributions_of_independent_tokens() -> None:
    """Against the sum over all sequences, token by token as likely as it says. An I that follows
    no tag of its label begins an entity.
    """
    rng = np.random.default_rng(6)
    n, names = 4, tag_names(["A", "B"], "IOB2")
    probs = rng.dirichlet(np.full(len(names), 0.5), n)
    expected = np.zeros((n, n_tags(2)))
    biluo = tag_names(["A", "B"])
    for tags in itertools.product(range(len(names)), repeat=n):
        weight = float(np.prod(probs[np.arange(n), tags]))
        text = [names[tag] for tag in tags]
        for t in range(n):
            if text[t] == "O":
                expected[t, 0] += weight
                continue
            prefix, label = text[t].split("-")
            open_before = t > 0 and text[t - 1] != "O" and text[t - 1].split("-")[1] == label
            begins = prefix == "B" or not open_before
            goes_on = t + 1 < n and text[t + 1] == f"I-{label}"
            move = {(1, 1): "B", (0, 1): "I", (0, 0): "L", (1, 0): "U"}[int(begins), int(goes_on)]
            expected[t, biluo.index(f"{move}-{label}")] += weight
    spelled = to_biluo(probs, "IOB2", doc_cuts([n]), np.zeros(n, dtype=bool))
    np.testing.assert_allclose(spelled, expected, atol=1e-12)


def test_merging_is_the_way_back() -> None:
    rng = np.random.default_rng(7)
    for scheme in ("IOB2", "IO"):
        probs = rng.dirichlet(np.ones(n_tags(3)), 6)
        merged = merge_biluo(probs, scheme)  # type: ignore[arg-type]
        names = tag_names(list("abc"), scheme)  # type: ignore[arg-type]
        for column, name in enumerate(names):
            sources = [
                i
                for i, source in enumerate(tag_names(list("abc")))
                if source[1:] == name[1:]
                and (scheme == "IO" or name == "O" or (source[0] in "BU") == (name[0] == "B"))
            ]
            np.testing.assert_allclose(merged[:, column], probs[:, sources].sum(axis=1))
    assert merge_biluo(probs, "BILUO") is probs


# The component


@pytest.mark.parametrize("scheme", OTHERS)
def test_it_learns_in_any_scheme(scheme: Scheme, tmp_path: Any) -> None:
    nlp = spacy.blank("en")
    ner: Any = nlp.add_pipe("distil_ner", name="ner", config={"model": MODEL, "scheme": scheme})
    words = ["she", "likes", "New", " ", "York", "City", "and", "San", "Marino", "Ann", "too"]
    tags = ["O", "O", "B-LOC", "I-LOC", "I-LOC", "L-LOC", "O", "B-LOC", "L-LOC", "U-PER", "O"]
    examples = [Example.from_dict(Doc(nlp.vocab, words=words), {"entities": tags})]
    train(nlp, examples)
    expected = [("New   York City", "LOC"), ("San Marino", "LOC"), ("Ann", "PER")]
    assert entities(nlp(Doc(nlp.vocab, words=words))) == expected
    assert ner.model.get_dim("nO") == 1 + 2 * len(PREFIXES[scheme])
    nlp.to_disk(tmp_path / "nlp")
    loaded: Any = spacy.load(tmp_path / "nlp")
    assert loaded.get_pipe("ner").scheme == scheme
    assert entities(loaded(Doc(loaded.vocab, words=words))) == expected
    assert ner.add_label("NEW") == 1
    assert ner.model.get_ref("output_layer").get_dim("nO") == 1 + 3 * len(PREFIXES[scheme])
    assert entities(nlp(Doc(nlp.vocab, words=words))) == expected


def test_iob1_tells_neighbours_apart() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("distil_ner", name="ner", config={"model": MODEL, "scheme": "IOB1"})
    words = ["Ann", "Bob", "Cy", "saw", "Rome"]
    tags = ["B-PER", "L-PER", "U-PER", "O", "U-LOC"]
    train(nlp, [Example.from_dict(Doc(nlp.vocab, words=words), {"entities": tags})])
    found = entities(nlp(Doc(nlp.vocab, words=words)))
    assert found == [("Ann Bob", "PER"), ("Cy", "PER"), ("Rome", "LOC")]


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match="'BIOES' of 'ner': expected one of BILUO, IOB2"):
        DistilNER(spacy.blank("en").vocab, None, "ner", scheme="BIOES")  # type: ignore[arg-type]
