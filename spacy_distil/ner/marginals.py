"""Probabilities of entities: sums over all valid sequences of tags.

A model's scores say how probable each tag of a token is, whatever its neighbours are. The
probability of a valid sequence is the product of its tags' probabilities, over the sum of this
product for all valid sequences: a linear-chain conditional random field (Lafferty et al. 2001)
whose transitions are free or forbidden. The forward-backward algorithm (Rabiner 1989) computes such
sums exactly.

All schemes are read as BILUO here: in the others, a token's score does not depend on where its
entity ends.

Most of a text is plainly outside of entities. `find_safe_cuts` proves between which neighbours the
probability that both are inside is below `TOLERANCE`. The stretches between such cuts are short,
and are computed side by side. So probabilities are exact up to a few times `TOLERANCE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spacy_distil.ner.decoding import OUTSIDE, B, Bools, Floats, I, Ints, L, Stretches, U
from spacy_distil.ner.schemes import PREFIXES, Scheme

TOLERANCE = 1e-7


@dataclass(frozen=True)
class Lattice:
    """Scores of the tags of tokens, and where no entity can be.

    Scores are log-probabilities, up to a constant for each token.

    outside: (n_tokens,), of O.
    inside: (n_tokens,), of all other tags together.
    moves: (n_tokens, n_labels, 4), of B, I, L and U.
    again: (n_tokens, n_labels, 4), in place of `moves` right behind an entity of the same label.
        `None` if that makes no difference.
    cuts: (n_tokens + 1,), True at boundaries that no entity crosses, both ends included.
    """

    outside: Floats
    inside: Floats
    moves: Floats
    again: Floats | None
    cuts: Bools

    @classmethod
    def of(
        cls, scores: Floats, scheme: Scheme, cuts: Bools, *, is_space: Bools, fixed: Bools
    ) -> Lattice:
        """Read scores with the constraints of `schemes.decode_entities`.

        scores: (n_tokens, n_tags), finite. Log-probabilities, or logits.
        is_space: (n_tokens,). In schemes other than BILUO it must be False: leave whitespace out.
        """
        logs = np.asarray(scores, dtype=np.float64)
        n = len(PREFIXES[scheme])
        by_label = logs[:, 1:].reshape(len(logs), (logs.shape[1] - 1) // n, n)
        again = None
        if scheme == "BILUO":
            moves = by_label.copy()
            for edge in (B, L, U):
                moves[is_space, :, edge] = -np.inf
        elif scheme == "IOB2":
            moves = by_label[:, :, [0, 1, 1, 0]]
        else:  # Every token has an I, but a neighbour of the same label: IO has no tag for it.
            moves = by_label[:, :, [-1, -1, -1, -1]]
            again = moves.copy()
            again[:, :, [B, U]] = by_label[:, :, :1] if scheme == "IOB1" else -np.inf
        inside = _log_sum(logs[:, 1:])
        moves[fixed] = inside[fixed] = -np.inf
        cuts = cuts.copy()
        cuts[:-1] |= fixed
        cuts[1:] |= fixed
        return cls(logs[:, OUTSIDE], inside, moves, again, cuts)


def find_safe_cuts(lattice: Lattice) -> Bools:
    """Find boundaries whose two neighbours are both inside of entities with a probability below
    `TOLERANCE`.

    Take all valid sequences in which the tokens from s to e are inside, and the ones around them
    are not. If these tokens become O, the sequences stay valid. So they are at most as probable as
    the product of inside / outside over the tokens from s to e. The sum of these products for all s
    and e around a boundary, which factorizes, bounds its probability.

    RETURNS: (n_tokens + 1,). The lattice's own cuts are among them.
    """
    cuts, n_tokens = lattice.cuts, len(lattice.outside)
    margin = np.minimum(lattice.outside - lattice.inside, 1e3)  # infinite where none can be
    total = np.concatenate([[0.0], np.cumsum(margin)])
    # As in `decoding.find_cuts`: what is beyond a given cut is too low to count.
    step = np.abs(margin).sum() + 100.0
    n_cuts = np.cumsum(cuts)
    starts = np.logaddexp.accumulate(total + step * n_cuts)
    ends = np.logaddexp.accumulate(-(total + step * (n_cuts - cuts))[::-1])[::-1]
    safe = cuts.copy()
    if n_tokens > 1:
        safe[1:-1] |= starts[:-2] + ends[2:] < np.log(TOLERANCE)
    return safe


class Marginals:
    """Probabilities of everything that a token can be in, for the stretches of some tokens.

    Arrays have a row for each token of the lattice. Rows outside of the stretches are of no use.
    """

    def __init__(self, lattice: Lattice, wanted: Bools) -> None:
        """wanted: (n_tokens,). The stretches between safe cuts with such a token are computed."""
        n_tokens, n_labels, _ = lattice.moves.shape
        self.lattice = lattice
        self.cuts = find_safe_cuts(lattice)
        # In logarithms, over the probability of the stretch: sums over the ways to get to a token
        # (with B or U, or with an open entity in front of it), and to go on behind it.
        self._by_b, self._by_u, self._open_before, self._open_after, self._closed_after = (
            np.full((n_tokens, n_labels), -np.inf) for _ in range(5)
        )
        self._outside = np.full(n_tokens, -np.inf)
        self._sums = np.zeros(n_tokens)  # of a stretch, at its first token
        # Only spans between two cuts are looked up, and their tokens can all be inside.
        inner = np.where(np.isfinite(lattice.moves[:, :, I]), lattice.moves[:, :, I], 0.0)
        self._inner = np.concatenate([np.zeros((1, n_labels)), np.cumsum(inner, axis=0)])
        if wanted.any():
            self._compute(Stretches.around(wanted, self.cuts))

    def _compute(self, stretches: Stretches) -> None:
        starts, n_active = stretches.starts, stretches.n_active
        lattice, n_labels = self.lattice, self._by_b.shape[1]
        # The token before is O; it ended an entity; one is open.
        outside: Floats = np.zeros(len(starts))
        ended, opened = np.full((2, len(starts), n_labels), -np.inf)
        for step, m in enumerate(n_active):
            here = starts[:m] + step
            outside, ended, opened = outside[:m], ended[:m], opened[:m]
            moves = lattice.moves[here]
            closed = np.logaddexp(outside, _log_sum(ended))
            if lattice.again is None:
                by_b, by_u = closed[:, None] + moves[:, :, B], closed[:, None] + moves[:, :, U]
            else:
                again, other = lattice.again[here], _sum_others(outside, ended)
                by_b = np.logaddexp(other + moves[:, :, B], ended + again[:, :, B])
                by_u = np.logaddexp(other + moves[:, :, U], ended + again[:, :, U])
            self._by_b[here], self._by_u[here], self._open_before[here] = by_b, by_u, opened
            outside = self._outside[here] = closed + lattice.outside[here]
            ended = np.logaddexp(by_u, opened + moves[:, :, L])
            opened = np.logaddexp(by_b, opened + moves[:, :, I])
        # The same from behind: the sums over the ways to go on.
        outside, ended = np.zeros(len(starts)), np.zeros((len(starts), n_labels))
        opened = np.full((len(starts), n_labels), -np.inf)
        for step, m in reversed(list(enumerate(n_active))):
            here = starts[:m] + step
            moves = lattice.moves[here]
            self._outside[here] += outside[:m]
            after_end, after_open = ended[:m].copy(), opened[:m].copy()
            self._closed_after[here], self._open_after[here] = after_end, after_open
            by_o = outside[:m] + lattice.outside[here]
            begun = np.logaddexp(moves[:, :, U] + after_end, moves[:, :, B] + after_open)
            outside[:m] = np.logaddexp(by_o, _log_sum(begun))
            if lattice.again is None:
                ended[:m] = outside[:m, None]
            else:
                again = lattice.again[here]
                repeated = np.logaddexp(again[:, :, U] + after_end, again[:, :, B] + after_open)
                ended[:m] = np.logaddexp(_sum_others(by_o, begun), repeated)
            opened[:m] = np.logaddexp(moves[:, :, L] + after_end, moves[:, :, I] + after_open)
        self._sums[starts] = outside
        # Sums become shares of the sum of the whole stretch.
        for step, m in enumerate(n_active):
            here = starts[:m] + step
            self._outside[here] -= outside[:m]
            self._closed_after[here] -= outside[:m, None]
            self._open_after[here] -= outside[:m, None]

    def log_sum(self, begin: int, end: int) -> float:
        """Sum all valid sequences between two cuts, in logarithms. All stretches are computed."""
        return float(self._sums[begin:end].sum())

    @property
    def tags(self) -> Floats:
        """Probability of each BILUO tag of each token, (n_tokens, 1 + 4 * n_labels)."""
        moves = self.lattice.moves
        logs = np.stack(
            [
                self._by_b + self._open_after,
                self._open_before + moves[:, :, I] + self._open_after,
                self._open_before + moves[:, :, L] + self._closed_after,
                self._by_u + self._closed_after,
            ],
            axis=2,
        )
        return np.exp(
            np.concatenate(
                [self._outside[:, None], logs.reshape(len(logs), 4 * moves.shape[1])], axis=1
            )
        )

    @property
    def begins(self) -> Floats:
        """Probability that an entity of a label begins at a token, (n_tokens, n_labels)."""
        return np.exp(np.logaddexp(self._by_b + self._open_after, self._by_u + self._closed_after))

    @property
    def ends(self) -> Floats:
        """Probability that a token is the last of an entity of a label, (n_tokens, n_labels)."""
        into = np.logaddexp(self._open_before + self.lattice.moves[:, :, L], self._by_u)
        return np.exp(into + self._closed_after)

    @property
    def crossings(self) -> Floats:
        """Probability that an entity of a label has both a token and the one before it,
        (n_tokens, n_labels).
        """
        moves = self.lattice.moves
        on = np.logaddexp(moves[:, :, I] + self._open_after, moves[:, :, L] + self._closed_after)
        return np.exp(self._open_before + on)

    def spans(self, starts: Ints, ends: Ints, labels: Ints) -> Floats:
        """Probability of entities: of both boundaries and the label.

        starts, ends, labels: each (n_entities,). Ends are exclusive.
        RETURNS: (n_entities,).
        """
        last = ends - 1
        inner = self._inner[last, labels] - self._inner[np.minimum(starts + 1, last), labels]
        long = self._by_b[starts, labels] + inner + self.lattice.moves[last, labels, L]
        into = np.where(starts == last, self._by_u[starts, labels], long)
        within = np.cumsum(self.cuts)
        alike = within[starts] == within[last]
        return np.where(alike, np.exp(into + self._closed_after[last, labels]), 0.0)

    def find_candidates(self, threshold: float) -> tuple[Ints, Ints, Ints, Floats]:
        """Find all entities whose probability is at least `threshold`, which is above 0.

        RETURNS (starts, ends, labels, probabilities): each (n_entities,), sorted by start, end and
            label.
        """
        n_tokens = len(self._by_b)
        # A span is at most as probable as each of its boundaries.
        by_label, first = np.nonzero(threshold <= self.begins.T)
        end_label, last = np.nonzero(threshold <= self.ends.T)
        # An entity is at most as probable as that one of its label goes on at any token inside.
        goes_on = threshold <= self.crossings.T
        breaks = np.flatnonzero(np.append(~goes_on, np.ones((len(goes_on), 1), bool), axis=1))
        own = by_label * (n_tokens + 1) + first
        stop = breaks[np.searchsorted(breaks, own, side="right")] - by_label * (n_tokens + 1)
        # Pairs of a start and each end of the same label in its stretch.
        keys = end_label * n_tokens + last
        low = np.searchsorted(keys, by_label * n_tokens + first)
        n_pairs = np.searchsorted(keys, by_label * n_tokens + stop) - low
        pair = np.arange(n_pairs.sum()) - np.repeat(np.cumsum(n_pairs) - n_pairs - low, n_pairs)
        starts, labels = np.repeat(first, n_pairs), np.repeat(by_label, n_pairs)
        ends = last[pair] + 1
        probabilities = self.spans(starts, ends, labels)
        chosen = np.flatnonzero(probabilities >= threshold)
        chosen = chosen[np.lexsort((labels[chosen], ends[chosen], starts[chosen]))]
        return starts[chosen], ends[chosen], labels[chosen], probabilities[chosen]


def _log_sum(logs: Floats) -> Floats:
    """Sum over the last axis, in logarithms."""
    if not logs.shape[-1]:
        return np.full(logs.shape[:-1], -np.inf)
    largest = logs.max(axis=-1)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):  # the logarithm of 0
        return np.asarray(np.log(np.exp(logs - shift[..., None]).sum(axis=-1)) + shift)


def _sum_others(outside: Floats, by_label: Floats) -> Floats:
    """Sum logarithms over O and all labels but one. RETURNS: (n, n_labels), by that one."""
    n_labels = by_label.shape[1]
    others = np.where(np.eye(n_labels, dtype=bool), -np.inf, by_label[:, None, :])
    return np.logaddexp(outside[:, None], _log_sum(others))
