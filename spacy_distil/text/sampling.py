"""Sampling texts of several languages by temperature, as in XLM (Conneau and Lample 2019).

A language with n units is read with a probability proportional to n ** alpha. Units are not drawn
one by one. The largest language is read once per epoch, and the others are repeated, so an epoch
leaves out no unit of any language.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spacy_distil.errors import ConfigError

# A language that is repeated more often than this in an epoch is more likely learned by heart.
MANY_REPEATS = 20.0


def temperature_repeats(sizes: Sequence[int], alpha: float) -> np.ndarray:
    """Compute how often an epoch reads each language, so that it reads none less than once.

    With shares p of n ** alpha, an epoch has max(n / p) units, of which a language has the share p.

    sizes: units of each language (blocks, documents, tokens), at least 1 each.
    alpha: 1 reads as much of each language as there is, 0 as much of each as of any other.
    RETURNS: (n_languages,) float64, at least 1; it need not be whole.
    Raises ConfigError if alpha is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha = {alpha}: expected a number from 0 (all languages alike) to 1 (as much of "
            "each as there is)."
        )
    n = np.asarray(sizes, dtype=np.float64)
    if len(n) == 0 or n.min() < 1:
        raise ValueError(f"sizes = {list(sizes)}: expected at least one, and each at least 1")
    return (n.max() / n) ** (1.0 - alpha)


def count_reads(size: int, repeats: float) -> int:
    """Count the units that an epoch reads of a language. See `temperature_repeats`."""
    return round(size * repeats)


def epoch_units(size: int, repeats: float, *, epoch: int, seed: int) -> np.ndarray:
    """List the units of a language that an epoch reads, each once in every full pass.

    The rest is a part of a random order of the language, and the next epoch goes on where this
    one ended. So all units are read equally often in the long run.

    size: units of the language. repeats: at least 1, see `temperature_repeats`.
    epoch: from 0. seed: of the random order; give each language its own.
    RETURNS: (n_reads,) int64, numbers of units from 0, pass after pass, not in random order.
    """
    passes, rest = divmod(count_reads(size, repeats), size)
    units = np.arange(size, dtype=np.int64)
    full = np.tile(units, passes)
    if not rest:
        return full
    order = np.random.default_rng(seed).permutation(units)
    return np.concatenate([full, order[(epoch * rest + np.arange(rest)) % size]])
