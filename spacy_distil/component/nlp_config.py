"""Complete the config and the meta of a pipeline that has an encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spacy.language import Language
from spacy.training import Example
from spacy.util import get_minor_version_range, registry
from wasabi import msg

from spacy_distil import __version__
from spacy_distil.engines.files import EngineName
from spacy_distil.runs.schedules import count_rising

# A requirement of this package, with or without extras and versions.
_REQUIREMENT = re.compile(r"spacy[-_.]distil\s*($|[\[<>=!~;,@ ])", re.IGNORECASE)


def fill_in_optimizer(nlp: Language) -> None:
    """Replace the variables in a pipeline's [training.optimizer] by their values.

    spaCy resolves this block alone, without variables such as `${training.max_steps}`, in
    `nlp.resume_training` and at the end of an `nlp.initialize` without an optimizer.
    """
    training = nlp.config.get("training", {})
    if "${" in str(training.get("optimizer", "")):
        training["optimizer"] = nlp.config.interpolate()["training"]["optimizer"]


def warn_of_warmup(nlp: Language, get_examples: Callable[[], Iterable[Example]]) -> None:
    """Warn if most of a training with `spacy train` would be warm-up.

    get_examples: returns the training examples.
    """
    training: Any = nlp.config.interpolate().get("training", {})
    rates = training.get("optimizer", {}).get("learn_rate")
    # A number, or a schedule that the config cannot hold, is no plan for a warm-up.
    if not isinstance(rates, dict):
        return
    n_steps = _count_steps(training, get_examples)
    rising = count_rising(registry.resolve({"schedule": rates})["schedule"], n_steps)
    if rising <= n_steps // 2:
        return
    ends = "ends with the last step" if rising >= n_steps - 1 else f"takes {rising:,} steps"
    msg.warn(
        f"The warm-up of the learning rate {ends}, of {n_steps:,} in all: the pipes will hardly "
        f"learn. Set [training.optimizer.learn_rate] warmup_steps to {n_steps // 10:,}, or train "
        "for more steps. 'spacy distil init-config train --corpus' fits both to a corpus."
    )


def _count_steps(training: Mapping[str, Any], get_examples: Callable[[], Iterable[Example]]) -> int:
    """Count the steps of a training; 0 if only patience or the user ends it.

    training: [training], interpolated.
    """
    n_steps = max(0, training.get("max_steps") or 0)
    epochs = training.get("max_epochs") or 0
    if epochs > 0:
        batcher = registry.resolve({"batcher": training["batcher"]})["batcher"]
        by_epochs = epochs * sum(1 for _ in batcher(get_examples()))
        n_steps = min(n_steps or by_epochs, by_epochs)
    return n_steps


def set_requirement(meta: dict[str, Any], engine: EngineName) -> None:
    """Write the requirement of a pipeline's encoder into its meta, extra included.

    `spacy package` finds out that a pipeline needs spacy-distil, but not which extra.
    """
    extra = "[train]" if engine == "torch" else ""
    others = [req for req in meta.get("requirements", []) if not _REQUIREMENT.match(req)]
    own = f"spacy-distil{extra}{get_minor_version_range(__version__)}"
    meta["requirements"] = [*others, own]
