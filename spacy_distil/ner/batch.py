"""The scores of a batch of docs, with the constraints on its entities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from spacy.attrs import (  # type: ignore[import-not-found]
    ENT_IOB,
    IS_SPACE,
    SENT_START,
)
from spacy.tokens import Doc

from spacy_distil.ner.decoding import Bools, Floats, Ints, doc_cuts
from spacy_distil.ner.marginals import Lattice, Marginals
from spacy_distil.ner.schemes import Scheme, cuts_between, decode_entities

# Values of token.ent_iob.
UNSET, INSIDE, BEGIN = 0, 1, 3


def is_taken(iob: np.ndarray) -> np.ndarray:
    """Find the tokens of entities, and blocked tokens, which spaCy marks as an empty entity."""
    return (iob == INSIDE) | (iob == BEGIN)


@dataclass(frozen=True)
class Batch:
    """Scores and constraints. Arrays have the tokens of all docs, one doc after another.

    lengths: number of tokens of each doc.
    scores: (n_tokens, n_tags), finite: log-probabilities, or logits.
    cuts: (n_tokens + 1,), True at boundaries that no entity crosses.
    is_space: (n_tokens,). No entity begins or ends on whitespace.
    fixed: (n_tokens,), True for tokens that no entity may have.
    """

    scheme: Scheme
    lengths: list[int]
    scores: Floats
    cuts: Bools
    is_space: Bools
    fixed: Bools

    @classmethod
    def of(
        cls, docs: Sequence[Doc], scores: Floats, scheme: Scheme, *, keep_entities: bool
    ) -> Batch:
        """Find the constraints of docs, which have tokens.

        keep_entities: whether entities and blocked tokens that the docs have stay.
        """
        lengths = [len(doc) for doc in docs]
        attrs = np.concatenate([doc.to_array([ENT_IOB, IS_SPACE, SENT_START]) for doc in docs])
        iob, is_space, sent_start = attrs.T
        cuts = doc_cuts(lengths)
        cuts[:-1] |= sent_start == 1
        fixed = is_taken(iob) if keep_entities else np.zeros(len(iob), dtype=bool)
        return cls(scheme, lengths, scores, cuts, is_space == 1, fixed)

    def with_scores(self, scores: Floats) -> Batch:
        """The same docs with other scores, (n_tokens, n_tags)."""
        return replace(self, scores=scores)

    def at(self, temperature: float) -> Batch:
        """The same docs at a temperature, which divides the scores."""
        return self.with_scores(self.scores / temperature)

    def decode(self) -> Ints:
        """Find the most probable entities: (n_entities, 3), start, end and number of the label."""
        found = decode_entities(
            self.scores, self.scheme, self.cuts, is_space=self.is_space, fixed=self.fixed
        )
        return np.stack(found, axis=1)

    @cached_property
    def bounds(self) -> Ints:
        """The first token of each doc, and the end: (n_docs + 1,)."""
        return np.cumsum([0, *self.lengths])

    @cached_property
    def tokens(self) -> Ints:
        """The tokens that have a vote: whitespace has one in BILUO alone."""
        return np.flatnonzero(~self.is_space | (self.scheme == "BILUO"))

    def marginals(self, wanted: Bools | None = None) -> Marginals:
        """Compute probabilities over `tokens`.

        wanted: (n_tokens,), see `Marginals`. None: all.
        """
        kept = self.tokens
        cuts = self.cuts.copy()
        cuts[:-1] |= self.fixed
        cuts[1:] |= self.fixed
        lattice = Lattice.of(
            self.scores[kept],
            self.scheme,
            cuts_between(kept, cuts),
            is_space=self.is_space[kept],
            fixed=self.fixed[kept],
        )
        return Marginals(lattice, np.ones(len(kept), bool) if wanted is None else wanted[kept])

    def probabilities(self, entities: Ints) -> Floats:
        """Compute the probability of each entity, 0 if it begins or ends on whitespace.

        entities: (n_entities, 3), as `decode` returns them.
        """
        found = np.zeros(len(entities))
        possible = ~self.is_space[entities[:, 0]] & ~self.is_space[entities[:, 1] - 1]
        starts, ends, labels = entities[possible].T
        wanted = np.zeros(len(self.scores), dtype=bool)
        wanted[starts] = True
        first, last = (np.searchsorted(self.tokens, each) for each in (starts, ends - 1))
        found[possible] = self.marginals(wanted).spans(first, last + 1, labels)
        return found

    def by_doc(self, starts: Ints) -> list[slice]:
        """Find the rows of each doc. starts: tokens, sorted."""
        rows = np.searchsorted(starts, self.bounds).tolist()
        return [slice(*pair) for pair in pairwise(rows)]
