"""Schemes of tags: how a tag per token spells entities.

    BILUO   B, I, L for the first, the inner and the last tokens of an entity, U for its only one
    IOB2    B for the first token, I for all others
    IOB1    I for all tokens, but B for the first one right behind an entity of the same label
    IO      I for all tokens: neighbours of the same label are one entity

`distil_ner` learns BILUO unless it is told otherwise. Classifiers from elsewhere come with their
own scheme. (BIOES is BILUO with other letters.) Such a classifier never sees whitespace, so in the
schemes other than BILUO tokens of whitespace have no vote: they are inside an entity if it goes on
behind them.

As in `decoding`, an array holds the tokens of all docs, and O has the number 0. The tags of label k
follow in the order of PREFIXES.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from spacy_distil.ner.decoding import (
    MISSING,
    OUTSIDE,
    B,
    Bools,
    Floats,
    Ints,
    Stretches,
    U,
    decode,
    find_cuts,
    find_spans,
)

Scheme = Literal["BILUO", "IOB2", "IOB1", "IO"]
SCHEMES: tuple[str, ...] = get_args(Scheme)
PREFIXES: dict[Scheme, str] = {"BILUO": "BILU", "IOB2": "BI", "IOB1": "BI", "IO": "I"}
# The tag of a scheme that must follow a tag of the same label.
_DEPENDENT: dict[Scheme, str] = {"IOB2": "I", "IOB1": "B", "IO": ""}


def tag_names(labels: Sequence[str], scheme: Scheme = "BILUO") -> list[str]:
    """List the names of all tags in the order of their numbers."""
    return ["O", *(f"{prefix}-{label}" for label in labels for prefix in PREFIXES[scheme])]


def n_tags(n_labels: int, scheme: Scheme = "BILUO") -> int:
    """Count the tags of a number of labels."""
    return 1 + len(PREFIXES[scheme]) * n_labels


def from_biluo(tags: Ints, scheme: Scheme, cuts: Bools, is_space: Bools) -> Ints:
    """Spell valid BILUO tags in another scheme.

    tags: (n_tokens,), valid apart from MISSING.
    cuts: (n_tokens + 1,), as in `decode`. No entity crosses them.
    is_space: (n_tokens,). Whitespace becomes MISSING, because it has no vote.
    RETURNS: (n_tokens,).
    """
    if scheme == "BILUO":
        return tags
    spelled = np.full(len(tags), MISSING, dtype=np.int64)
    kept = np.flatnonzero(~is_space)
    tags, cuts = tags[kept], cuts_between(kept, cuts)
    move, label = (tags - 1) % 4, (tags - 1) // 4
    inside = tags > OUTSIDE
    begins = inside & ((move == B) | (move == U))
    if scheme == "IOB1":
        begins &= _before(np.where(inside, label, -1), cuts, -1) == label
    n = len(PREFIXES[scheme])
    own = 1 + n * label + (0 if scheme == "IO" else ~begins)
    spelled[kept] = np.where(inside, own, tags)
    return spelled


def decode_entities(
    scores: Floats, scheme: Scheme, cuts: Bools, *, is_space: Bools, fixed: Bools
) -> tuple[Ints, Ints, Ints]:
    """Find the entities of the valid sequence of tags with the highest sum of scores.

    scores: (n_tokens, n_tags), finite. See `decode`.
    cuts, fixed: as in `decode`.
    is_space: (n_tokens,), True for whitespace. No entity begins or ends on it.
    RETURNS (starts, ends, labels): as `find_spans` does.
    """
    if scheme == "BILUO":
        return find_spans(decode(scores, cuts, no_edge=is_space, fixed=fixed))
    cuts = cuts.copy()
    cuts[:-1] |= fixed
    cuts[1:] |= fixed
    kept = np.flatnonzero(~is_space)
    if not len(kept) or scores.shape[1] == 1:
        none = np.zeros(0, dtype=np.int64)
        return none, none, none
    cuts = cuts_between(kept, cuts)
    tags = _decode(scores[kept], scheme, cuts, fixed[kept])
    n = len(PREFIXES[scheme])
    label = np.where(tags == OUTSIDE, -1, (tags - 1) // n)
    begins = _before(label, cuts, -1) != label
    if scheme != "IO":
        begins |= (tags - 1) % n == 0
    begins &= label >= 0
    goes_on = np.append((label[1:] >= 0) & ~begins[1:], False)
    starts, ends = np.flatnonzero(begins), np.flatnonzero((label >= 0) & ~goes_on)
    return kept[starts], kept[ends] + 1, label[starts]


def to_biluo(probs: Floats, scheme: Scheme, cuts: Bools, is_space: Bools) -> Floats:
    """Turn a distribution over the tags of a scheme into one over BILUO tags.

    A tag of BILUO says more than a tag of another scheme: whether the entity ends here. The
    distributions of the neighbours tell, taken as independent. An I behind another label begins an
    entity. For each token, the probabilities of O and of each label stay the same.

    probs: (n_tokens, n_tags).
    cuts, is_space: as in `decode_entities`.
    RETURNS: (n_tokens, 1 + 4 * n_labels). Whitespace is as probably inside an entity as both of its
        neighbours are inside the same one.
    """
    if scheme == "BILUO":
        return probs
    n = len(PREFIXES[scheme])
    n_labels = (probs.shape[1] - 1) // n
    spelled = np.zeros((len(probs), 1 + 4 * n_labels), dtype=probs.dtype)
    kept = np.flatnonzero(~is_space)
    cuts = cuts_between(kept, cuts)
    own = probs[kept, 1:].reshape(len(kept), n_labels, n)
    inner, total = own[:, :, -1], own.sum(axis=2)
    continues = inner * _before(total, cuts, 0)
    begins = total - continues
    # The probability that an entity which has this token has the next one, too.
    onward = np.where(cuts[1:, None], 0, np.append(inner[1:], np.zeros_like(inner[:1]), axis=0))
    moves = [begins * onward, continues * onward, continues * (1 - onward), begins * (1 - onward)]
    spelled[kept, 1:] = np.stack(moves, axis=2).reshape(len(kept), -1)
    # Whitespace behind kept token i is inside if that token's entity goes on.
    spaces = np.flatnonzero(is_space)
    last = np.searchsorted(kept, spaces) - 1
    behind = last >= 0
    spelled[spaces[behind], 1 + 1 :: 4] = (total * onward)[last[behind]]
    spelled[:, OUTSIDE] = 1 - spelled[:, 1:].sum(axis=1)
    spelled[kept, OUTSIDE] = probs[kept, OUTSIDE]
    return spelled


def merge_biluo(probs: Floats, scheme: Scheme) -> Floats:
    """Turn a distribution over BILUO tags into one over the tags of another scheme.

    probs: (n_tokens, 1 + 4 * n_labels).
    scheme: any but IOB1, whose tags depend on the entity before.
    RETURNS: (n_tokens, n_tags).
    """
    if scheme == "BILUO":
        return probs
    by_label = probs[:, 1:].reshape(len(probs), -1, 4)
    begins, others = by_label[:, :, [0, 3]].sum(axis=2), by_label[:, :, [1, 2]].sum(axis=2)
    moves = [begins, others] if scheme == "IOB2" else [begins + others]
    return np.concatenate([probs[:, :1], np.stack(moves, axis=2).reshape(len(probs), -1)], axis=1)


def cuts_between(kept: Ints, cuts: Bools) -> Bools:
    """Find the cuts between the kept tokens, where any boundary between two of them counts."""
    n_before = np.cumsum(cuts)[kept]
    between = np.ones(len(kept) + 1, dtype=bool)
    between[1:-1] = n_before[1:] > n_before[:-1]
    return between


def _before(values: np.ndarray, cuts: Bools, default: int) -> np.ndarray:
    """Return the value of the token before each token, the default behind a cut."""
    before = np.full_like(values, default)
    before[1:] = values[:-1]
    before[cuts[:-1]] = default
    return before


def _decode(scores: Floats, scheme: Scheme, cuts: Bools, fixed: Bools) -> Ints:
    """Find the best valid tags in a scheme other than BILUO. See `decode`."""
    tags = scores.argmax(axis=1)
    tags[fixed] = OUTSIDE
    n, dependent = len(PREFIXES[scheme]), PREFIXES[scheme].find(_DEPENDENT[scheme] or "-")
    if dependent < 0:
        return tags
    label = np.where(tags == OUTSIDE, -1, (tags - 1) // n)
    faulty = (label >= 0) & ((tags - 1) % n == dependent) & (_before(label, cuts, -1) != label)
    if not faulty.any():
        return tags
    stretches = Stretches.around(faulty, cuts | find_cuts(scores, cuts))
    _search(scores, dependent, stretches, tags)
    return tags


def _search(scores: Floats, dependent: int, stretches: Stretches, tags: Ints) -> None:
    """Search stretches of tokens by the Viterbi algorithm, side by side, and write their tags.

    scores: (n_tokens, 1 + 2 * n_labels).
    dependent: which of a label's two tags must follow a tag of the same label.
    stretches: nothing is open where one begins.
    tags: (n_tokens,). The search overwrites the tags of the stretches.
    """
    starts, lengths = stretches.starts, stretches.lengths
    first, n_active = stretches.rows, stretches.n_active
    n_steps, n_columns = len(n_active), scores.shape[1]
    columns = np.arange(n_columns)
    bound = (columns > OUTSIDE) & ((columns - 1) % 2 == dependent)
    mates = 1 + 2 * ((columns[bound] - 1) // 2)  # the first tag of the same label
    best = np.full((len(starts), n_columns), -np.inf)
    best[:, OUTSIDE] = 0
    # The best tag of the token before each token, by the token's own tag.
    came_from = np.empty((int(lengths.sum()), n_columns), dtype=np.int32)
    for step in range(n_steps):
        m = n_active[step]
        best = best[:m]
        source = np.repeat(best.argmax(axis=1)[:, None], n_columns, axis=1)
        source[:, bound] = mates + (best[:, mates + 1] > best[:, mates])
        came_from[first[:m] + step] = source
        best = np.take_along_axis(best, source, axis=1) + scores[starts[:m] + step]
        if not step:
            best[:, bound] = -np.inf
        last = lengths[:m] == step + 1
        tags[starts[:m][last] + step] = best[last].argmax(axis=1)
    for step in reversed(range(1, n_steps)):
        m = n_active[step]
        here = starts[:m] + step
        tags[here - 1] = came_from[first[:m] + step, tags[here]]
