"""The stages of a run: stretches of its steps, each with an objective of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise


def split_steps(shares: Mapping[str, float], n_steps: int) -> dict[str, range]:
    """Divide the steps of a run among its stages, in order and in proportion to their shares.

    shares: by the stage's name; 0 or more, at least one above 0.
    RETURNS: the steps of each stage, numbered from 0. The range of a small share may be empty.
    """
    ends = [0.0, *accumulate(shares.values())]
    bounds = [round(n_steps * end / ends[-1]) for end in ends]
    return {
        name: range(start, end) for name, (start, end) in zip(shares, pairwise(bounds), strict=True)
    }
