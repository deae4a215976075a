"""Complete the config and the meta of a pipeline that has an encoder."""

from __future__ import annotations

import re
from typing import Any

from spacy.language import Language
from spacy.util import get_minor_version_range

from spacy_distil import __version__
from spacy_distil.engines.files import EngineName

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


def set_requirement(meta: dict[str, Any], engine: EngineName) -> None:
    """Write the requirement of a pipeline's encoder into its meta, extra included.

    `spacy package` finds out that a pipeline needs spacy-distil, but not which extra.
    """
    extra = "[train]" if engine == "torch" else ""
    others = [req for req in meta.get("requirements", []) if not _REQUIREMENT.match(req)]
    own = f"spacy-distil{extra}{get_minor_version_range(__version__)}"
    meta["requirements"] = [*others, own]
