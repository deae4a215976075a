"""Pipelines with a component and an architecture that only a Python file of the user registers."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import spacy
from thinc.api import Config

CODE = """
import spacy
from spacy.language import Language


@Language.component("{name}")
def mark_capitals(doc):
    doc.user_data["capitals"] = sum(token.is_title for token in doc)
    return doc


@spacy.registry.architectures("{name}.Tagger.v1")
def build_tagger(tok2vec, nO=None, normalize=False):
    return spacy.registry.architectures.get("spacy.Tagger.v2")(tok2vec, nO, normalize)
"""


def make_own(pipeline: Path, *, code: Path | None = None) -> Path:
    """Add a component to a saved pipeline, and let its tagger have an architecture, both of which
    only a Python file registers. Each call gives them other names, unknown to this process.

    code: where to write the file; beside the pipeline without it.
    RETURNS: the file.
    """
    name = f"own_{uuid4().hex[:12]}"
    config = Config().from_disk(pipeline / "config.cfg", interpolate=False)
    config["nlp"]["pipeline"].append(name)
    config["components"][name] = {"factory": name}
    if "tagger" in config["components"]:
        config["components"]["tagger"]["model"]["@architectures"] = f"{name}.Tagger.v1"
    config.to_disk(pipeline / "config.cfg")
    code = code or pipeline.with_suffix(".py")
    code.write_text(CODE.format(name=name))
    return code


def write_own_pipeline(path: Path) -> Path:
    """Write a blank pipeline with such a component. RETURNS: the file that registers it."""
    spacy.blank("en").to_disk(path)
    return make_own(path)
