"""BILUO tags, and the best valid sequence of them, for a whole batch at once.

A token is Outside of entities, or Begins one of two tokens or more, lies Inside it, is its Last, or
is a Unit by itself. The tags of K labels are numbered so that a further label adds to the end:

    0: O    1 + 4k: B-label    2 + 4k: I-label    3 + 4k: L-label    4 + 4k: U-label

The tokens of all docs lie behind one another in one array. A *cut* is a boundary between two tokens
that no entity crosses: the ends of docs, and whatever else is known to be one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.floating]

OUTSIDE = 0
MISSING = -1
PREFIXES = ("B", "I", "L", "U")
B, I, L, U = range(4)  # noqa: E741


def tag_names(labels: Sequence[str]) -> list[str]:
    """The tags of these labels, in their order."""
    return ["O", *(f"{prefix}-{label}" for label in labels for prefix in PREFIXES)]


def n_tags(n_labels: int) -> int:
    """How many tags there are."""
    return 1 + len(PREFIXES) * n_labels


def find_spans(tags: Ints) -> tuple[Ints, Ints, Ints]:
    """The entities of a valid sequence.

    tags: (n_tokens,).
    RETURNS (starts, ends, labels): each (n_entities,), in order; ends exclusive, labels numbered
        from 0.
    """
    move, label = (tags - 1) % 4, (tags - 1) // 4
    inside = tags != OUTSIDE
    starts = np.flatnonzero(inside & ((move == B) | (move == U)))
    ends = np.flatnonzero(inside & ((move == L) | (move == U))) + 1
    return starts, ends, label[starts]


def doc_cuts(lengths: Iterable[int]) -> Bools:
    """The cuts between docs.

    lengths: tokens of each doc.
    RETURNS: (n_tokens + 1,), True at t where no entity holds both token t - 1 and token t.
    """
    ends = np.cumsum([0, *lengths])
    cuts = np.zeros(ends[-1] + 1, dtype=bool)
    cuts[ends] = True
    return cuts


def decode(
    scores: Floats, cuts: Bools, *, no_edge: Bools | None = None, fixed: Bools | None = None
) -> Ints:
    """The valid sequence of tags with the highest sum of scores.

    The best tag of each token by itself is the answer wherever these make valid entities. Where
    they do not, the search is exact, but confined to the stretch around the fault: from the scores
    follows where no entity of the best sequence can reach (see `_find_cuts`).

    scores: (n_tokens, 1 + 4 * n_labels), finite; log-probabilities, or logits, which differ from
        them by a constant per token.
    cuts: (n_tokens + 1,), True where no entity may cross; at both ends it must be.
    no_edge: (n_tokens,), tokens on which no entity may begin or end.
    fixed: (n_tokens,), tokens that are taken, and come out as O: no entity holds one of them.
    RETURNS: (n_tokens,) tags.
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
    cuts = cuts | _find_cuts(scores, cuts)
    faulty = _find_faults(tags, cuts)
    starts = np.flatnonzero(cuts)
    stretches = np.unique(np.searchsorted(starts, np.flatnonzero(faulty), side="right") - 1)
    _search(scores, starts[stretches], starts[stretches + 1], tags)
    return tags


def _find_faults(tags: Ints, cuts: Bools) -> Bools:
    """Tokens whose tag does not go with that of a neighbour: (n_tokens,)."""
    # What each token expects of the boundary before and after it: 0, or the open entity's label.
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


def _find_cuts(scores: Floats, cuts: Bools) -> Bools:
    """Further cuts, which the best sequence is certain to respect: (n_tokens + 1,).

    Take d, by how much O is better than the best other tag of a token, and D, its cumulative sum.
    Against tokens start:end being O, an entity there loses D[end] - D[start] or more. Where that is
    positive for all start < t < end that reach across t, the best sequence has no entity across t:
    the least D after t is greater than the greatest D before it.

    Positions beyond the next given cut do not count; a step at each cut, higher than all that d can
    amount to, takes them out of the comparison.
    """
    margin = (scores[:, 0] - scores[:, 1:].max(axis=1)).astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(margin)])
    step = np.abs(margin).sum() + 1.0
    # A given cut is the end of one block, and the start of the next.
    n_cuts = np.cumsum(cuts)
    as_start = total + step * n_cuts
    as_end = total + step * (n_cuts - cuts)
    found = np.zeros_like(cuts)
    greatest = np.maximum.accumulate(as_start)[:-2]
    least = np.minimum.accumulate(as_end[::-1])[::-1][2:]
    found[1:-1] = greatest < least
    return found


def _search(scores: Floats, starts: Ints, ends: Ints, tags: Ints) -> None:
    """Viterbi search over stretches, side by side; writes their tags.

    Between two tokens an entity is open, with one of the labels, or none is: the state is the best
    score of each of these 1 + n_labels cases.

    scores: (n_tokens, 1 + 4 * n_labels). starts, ends: (n_stretches,). tags: (n_tokens,).
    """
    # Longest first: the stretches that reach a step are the first so many.
    order = np.argsort(starts - ends, kind="stable")
    starts, lengths = starts[order], (ends - starts)[order]
    n_labels = scores.shape[1] // 4
    first = np.cumsum(lengths) - lengths
    n_steps = int(lengths[0])
    n_active = np.searchsorted(-lengths, -np.arange(n_steps), side="left")
    closed = np.zeros(len(starts))
    opened = np.full((len(starts), n_labels), -np.inf)
    # How each case came about. closed: 0 by O, 1 + k by U-k, 1 + n_labels + k by L-k; open: by B.
    closed_by = np.empty(lengths.sum(), dtype=np.int64)
    opened_by_b = np.empty((len(closed_by), n_labels), dtype=bool)
    for step in range(n_steps):
        m = n_active[step]
        row = scores[starts[:m] + step].astype(np.float64)
        moves = row[:, 1:].reshape(m, n_labels, 4)
        before, still = closed[:m, None], opened[:m]
        ways = np.concatenate(
            [before + row[:, :1], before + moves[:, :, U], still + moves[:, :, L]], axis=1
        )
        begun, continued = before + moves[:, :, B], still + moves[:, :, I]
        closed_by[first[:m] + step] = ways.argmax(axis=1)
        opened_by_b[first[:m] + step] = begun >= continued
        closed, opened = ways.max(axis=1), np.maximum(begun, continued)
    # Back from the ends, where no entity is open.
    label = np.full(len(starts), -1)
    way_tags = np.concatenate(
        [[OUTSIDE], 1 + 4 * np.arange(n_labels) + U, 1 + 4 * np.arange(n_labels) + L]
    )
    for step in reversed(range(n_steps)):
        m = n_active[step]
        way, current = closed_by[first[:m] + step], label[:m]
        is_open = current >= 0
        by_b = opened_by_b[first[:m] + step, current]
        tag = np.where(is_open, 1 + 4 * current + np.where(by_b, B, I), way_tags[way])
        tags[starts[:m] + step] = tag
        closing = np.where(way > n_labels, way - 1 - n_labels, -1)
        label[:m] = np.where(is_open, np.where(by_b, -1, current), closing)
