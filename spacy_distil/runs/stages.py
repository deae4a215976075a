"""The stages of a run: stretches of its steps, each with an objective of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise

from spacy_distil.errors import ConfigError


def split_steps(shares: Mapping[str, float], n_steps: int) -> dict[str, range]:
    """Divide the steps of a run among its stages, in order and in proportion to their shares.

    shares: by the stage's name; 0 or more, at least one above 0. A share of 0 skips the stage.
    RETURNS: the steps of each stage that is not skipped, numbered from 0.
    Raises ConfigError if a share is too small for a single step.
    """
    ends = [0.0, *accumulate(shares.values())]
    bounds = [round(n_steps * end / ends[-1]) for end in ends]
    steps = {}
    for (name, share), (start, end) in zip(shares.items(), pairwise(bounds), strict=True):
        if share and start == end:
            raise ConfigError(
                f"stages.{name}.share = {share}: of the run's {n_steps:,} steps none is left for "
                "it. Train for more steps, or give it a larger share"
            )
        if share:
            steps[name] = range(start, end)
    return steps
