"""BILUO tags, and the best valid sequence of tags for a whole batch at once.

A token is Outside of entities, or it Begins an entity of two tokens or more, lies Inside it, is its
Last token, or is a Unit by itself. A new label adds its tags at the end:

    0: O    1 + 4k: B-label    2 + 4k: I-label    3 + 4k: L-label    4 + 4k: U-label

An array holds the tokens of all docs, one doc after another. A *cut* is a boundary between two
tokens that no entity crosses, such as the end of a doc.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.floating]

OUTSIDE = 0
MISSING = -1
B, I, L, U = range(4)  # noqa: E741


def find_spans(tags: Ints) -> tuple[Ints, Ints, Ints]:
    """Find the entities of a valid sequence of tags.

    tags: (n_tokens,).
    RETURNS (starts, ends, labels): each (n_entities,), in the order of the tokens. Ends are
        exclusive, and labels are numbers from 0.
    """
    move, label = (tags - 1) % 4, (tags - 1) // 4
    inside = tags != OUTSIDE
    starts = np.flatnonzero(inside & ((move == B) | (move == U)))
    ends = np.flatnonzero(inside & ((move == L) | (move == U))) + 1
    return starts, ends, label[starts]


def trim_edges(tags: Ints, no_edge: Bools) -> tuple[Ints, int]:
    """Take the tokens off the ends of entities on which none may begin or end.

    An entity of such tokens only becomes Outside.

    tags: (n_tokens,), valid apart from MISSING.
    no_edge: (n_tokens,), as in `decode`.
    RETURNS (tags, n_changed): the latter is the number of entities that have changed.
    """
    starts, ends, labels = find_spans(np.maximum(tags, OUTSIDE))
    changed = np.flatnonzero(no_edge[starts] | no_edge[ends - 1])
    if not len(changed):
        return tags, 0
    tags = tags.copy()
    for start, end, label in zip(starts[changed], ends[changed], labels[changed], strict=True):
        kept = start + np.flatnonzero(~no_edge[start:end])
        tags[start:end] = OUTSIDE
        if not len(kept):
            continue
        first, last = kept[0], kept[-1]
        tags[first : last + 1] = 1 + 4 * label + I
        tags[first], tags[last] = 1 + 4 * label + B, 1 + 4 * label + L
        if first == last:
            tags[first] = 1 + 4 * label + U
    return tags, len(changed)


def doc_cuts(lengths: Iterable[int]) -> Bools:
    """Mark the boundaries of docs as cuts.

    lengths: number of tokens of each doc.
    RETURNS: (n_tokens + 1,). True at t means that no entity has both token t - 1 and token t.
    """
    ends = np.cumsum([0, *lengths])
    cuts = np.zeros(ends[-1] + 1, dtype=bool)
    cuts[ends] = True
    return cuts


def decode(
    scores: Floats, cuts: Bools, *, no_edge: Bools | None = None, fixed: Bools | None = None
) -> Ints:
    """Find the valid sequence of tags with the highest sum of scores.

    If the best tag of each token makes valid entities, these tags are the answer. Around a fault,
    the search is exact, but confined to a stretch: the scores tell which boundaries no entity of
    the best sequence crosses (see `find_cuts`).

    scores: (n_tokens, 1 + 4 * n_labels), finite. Log-probabilities, or logits, which differ from
        them by a constant per token.
    cuts: (n_tokens + 1,), True at boundaries that no entity may cross. Both ends must be True.
    no_edge: (n_tokens,), True for tokens on which no entity may begin or end.
    fixed: (n_tokens,), True for tokens that no entity may have. Their tag is O.
    RETURNS: tags, (n_tokens,).
    """
    n_tokens, n_columns = scores.shape
    if cuts.shape != (n_tokens + 1,) or not (cuts[0] and cuts[-1]):
        raise ValueError(
            f"Expected cuts of shape {(n_tokens + 1,)}, True at both ends, got {cuts.shape}."
        )
    if n_columns % 4 != 1:
        raise ValueError(f"Expected scores of 1 + 4 * n_labels columns, got {n_columns}.")
    if n_tokens == 0 or n_columns == 1:
        return np.zeros(n_tokens, dtype=np.int64)
    if no_edge is not None and no_edge.any():
        scores = scores.copy()
        moves = (np.arange(n_columns) - 1) % 4
        edges = np.flatnonzero((moves != I) & (np.arange(n_columns) != OUTSIDE))
        scores[np.flatnonzero(no_edge)[:, None], edges] = -np.inf
    tags = scores.argmax(axis=1)
    if fixed is not None and fixed.any():
        tags[fixed] = OUTSIDE
        cuts = cuts.copy()
        cuts[:-1] |= fixed
        cuts[1:] |= fixed
    if not _find_faults(tags, cuts).any():
        return tags
    cuts = cuts | find_cuts(scores, cuts)
    _search(scores, Stretches.around(_find_faults(tags, cuts), cuts), tags)
    return tags


@dataclass(frozen=True)
class Stretches:
    """Stretches of tokens that are searched side by side, the longest one first.

    starts: (n_stretches,) the first token of each.
    lengths: (n_stretches,) number of tokens of each.
    """

    starts: Ints
    lengths: Ints

    @classmethod
    def around(cls, faulty: Bools, cuts: Bools) -> Stretches:
        """Find the stretches between two cuts that have a faulty token.

        faulty: (n_tokens,), True for at least one token.
        cuts: (n_tokens + 1,).
        """
        bounds = np.flatnonzero(cuts)
        chosen = np.unique(np.searchsorted(bounds, np.flatnonzero(faulty), side="right") - 1)
        starts, ends = bounds[chosen], bounds[chosen + 1]
        order = np.argsort(starts - ends, kind="stable")
        return cls(starts[order], (ends - starts)[order])

    @property
    def rows(self) -> Ints:
        """The number of tokens of the stretches before each one, (n_stretches,)."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def n_active(self) -> Ints:
        """The number of stretches that have a token at each step, (n_steps,). They come first."""
        steps = np.arange(int(self.lengths[0]))
        return np.searchsorted(-self.lengths, -steps, side="left")


def _find_faults(tags: Ints, cuts: Bools) -> Bools:
    """Find the tokens whose tag does not fit the tag of a neighbour. RETURNS: (n_tokens,)."""
    # The label of the entity that must be open before and after each token, 0 for none.
    move, label = (tags - 1) % 4, (tags - 1) // 4 + 1
    inside = tags != OUTSIDE
    before = np.where(inside & ((move == I) | (move == L)), label, 0)
    after = np.where(inside & ((move == B) | (move == I)), label, 0)
    faults = np.zeros(len(tags), dtype=bool)
    faults[:] = cuts[:-1] & (before != 0)
    faults |= cuts[1:] & (after != 0)
    inner = ~cuts[1:-1] & (after[:-1] != before[1:])
    faults[:-1] |= inner
    faults[1:] |= inner
    return faults


def find_cuts(scores: Floats, cuts: Bools) -> Bools:
    """Find further boundaries that no entity of the best sequence crosses.

    Let d be the margin of O over the best other tag of a token, and D the cumulative sum of d. An
    entity start:end scores at least D[end] - D[start] less than O on all its tokens. If this is
    positive for all start < t < end, no entity of the best sequence crosses t. This holds if the
    smallest D after t is greater than the greatest D before t.

    Positions beyond the nearest given cuts do not count. A step at each cut, higher than the sum of
    all |d|, takes them out of the comparison.

    RETURNS: (n_tokens + 1,).
    """
    margin = (scores[:, 0] - scores[:, 1:].max(axis=1)).astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(margin)])
    step = np.abs(margin).sum() + 1.0
    # A given cut is the end of one block, and the start of the next.
    n_cuts = np.cumsum(cuts)
    as_start = total + step * n_cuts
    as_end = total + step * (n_cuts - cuts)
    new_cuts = np.zeros_like(cuts)
    greatest = np.maximum.accumulate(as_start)[:-2]
    smallest = np.minimum.accumulate(as_end[::-1])[::-1][2:]
    new_cuts[1:-1] = greatest < smallest
    return new_cuts


def _search(scores: Floats, stretches: Stretches, tags: Ints) -> None:
    """Search stretches of tokens by the Viterbi algorithm, side by side, and write their tags.

    Between two tokens, an entity of one of the labels is open, or no entity is. The state of the
    search is the best score of each of these 1 + n_labels cases.

    scores: (n_tokens, 1 + 4 * n_labels).
    tags: (n_tokens,). The search overwrites the tags of the stretches.
    """
    starts, lengths = stretches.starts, stretches.lengths
    first, n_active = stretches.rows, stretches.n_active
    n_labels, n_steps = scores.shape[1] // 4, len(n_active)
    closed = np.zeros(len(starts))
    opened = np.full((len(starts), n_labels), -np.inf)
    # The best tag into each case. Closed: 0 for O, 1 + k for U-k, 1 + n_labels + k for L-k. Open:
    # whether it is B.
    closed_by = np.empty(lengths.sum(), dtype=np.int64)
    opened_by_b = np.empty((len(closed_by), n_labels), dtype=bool)
    for step in range(n_steps):
        m = n_active[step]
        row = scores[starts[:m] + step].astype(np.float64)
        moves = row[:, 1:].reshape(m, n_labels, 4)
        was_closed, was_open = closed[:m, None], opened[:m]
        closing = np.concatenate(
            [was_closed + row[:, :1], was_closed + moves[:, :, U], was_open + moves[:, :, L]],
            axis=1,
        )
        begun, continued = was_closed + moves[:, :, B], was_open + moves[:, :, I]
        closed_by[first[:m] + step] = closing.argmax(axis=1)
        opened_by_b[first[:m] + step] = begun >= continued
        closed, opened = closing.max(axis=1), np.maximum(begun, continued)
    # Follow the best tags back from the ends, where no entity is open.
    label = np.full(len(starts), -1)
    closing_tags = np.concatenate(
        [[OUTSIDE], 1 + 4 * np.arange(n_labels) + U, 1 + 4 * np.arange(n_labels) + L]
    )
    for step in reversed(range(n_steps)):
        m = n_active[step]
        choice, current = closed_by[first[:m] + step], label[:m]
        is_open = current >= 0
        by_b = opened_by_b[first[:m] + step, current]
        tag = np.where(is_open, 1 + 4 * current + np.where(by_b, B, I), closing_tags[choice])
        tags[starts[:m] + step] = tag
        last = np.where(choice > n_labels, choice - 1 - n_labels, -1)
        label[:m] = np.where(is_open, np.where(by_b, -1, current), last)
