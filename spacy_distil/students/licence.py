"""Find the licence of a teacher in its own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Beginnings of the names of licence files, in lower case.
LICENCE_FILES = ("licen", "copying")


@dataclass(frozen=True)
class Licence:
    """The licence of a model, as far as its files say.

    metadata: licence keys of the model card, for the cards of models made from this one. Empty if
        the card has none.
    text: name and first line of a licence file, or `None`.
    """

    metadata: dict[str, Any]
    text: tuple[str, str] | None = None

    def describe(self) -> str:
        """Describe the licence in a sentence or two."""
        if "license" in self.metadata:
            stated = self.metadata["license"]
            parts = [*stated] if isinstance(stated, list) else [stated]
            details = ("license_name", "license_link")
            parts += [self.metadata[key] for key in details if key in self.metadata]
            return f"{', '.join(map(str, parts))}, says the teacher's model card."
        if self.text is not None:
            return f"See the teacher's file {self.text[0]}, which begins: {self.text[1]}"
        return (
            "Unknown: neither a model card nor a licence file of the teacher states it. Find out "
            "before you pass this model on."
        )


def find_licence(name: str, *, revision: str | None = None) -> Licence:
    """Read the licence of a model from its model card, or from a licence file.

    name: directory or hub name. A card that cannot be fetched counts as missing.
    revision: branch, tag or commit on the hub.
    """
    metadata = _read_card(name, revision)
    stated = {key: value for key, value in metadata.items() if key.startswith("license")}
    if stated.get("license"):
        return Licence(stated)
    directory = Path(name)
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.name.lower().startswith(LICENCE_FILES):
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                first_line = next((line.strip() for line in lines if line.strip()), "")
                return Licence({}, (path.name, first_line))
    return Licence({})


def _read_card(name: str, revision: str | None) -> dict[str, Any]:
    """Read the metadata of a model card. RETURNS: empty if there is no readable card."""
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    hub_options = {"revision": revision} if revision else {}
    try:
        card = Path(cached_file(name, "README.md", **hub_options)).read_text(encoding="utf-8")
        return ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # missing, unreachable or malformed
        return {}
