"""Under which licence a teacher was published, as far as its own files say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How files that hold a licence's text begin.
TEXTS = ("licen", "copying")


@dataclass(frozen=True)
class Licence:
    """What is known of a model's licence.

    metadata: the keys of the model card that tell it, to be repeated in the cards of models made
        from this one; empty where the card tells nothing.
    text: name and first line of a file with the licence's text, or `None`.
    """

    metadata: dict[str, Any]
    text: tuple[str, str] | None = None

    def describe(self) -> str:
        """One sentence."""
        if "license" in self.metadata:
            stated = self.metadata["license"]
            parts = [*stated] if isinstance(stated, list) else [stated]
            more = ("license_name", "license_link")
            parts += [self.metadata[key] for key in more if key in self.metadata]
            return f"{', '.join(map(str, parts))}, says the teacher's model card."
        if self.text is not None:
            return f"See the teacher's file {self.text[0]}, which begins: {self.text[1]}"
        return (
            "Unknown: neither a model card nor a licence file of the teacher says. Find out before "
            "you pass this model on."
        )


def find_licence(name: str, *, revision: str | None = None) -> Licence:
    """Read the licence of a model out of its card, or find the file that holds it.

    name: directory or hub name. A card that cannot be fetched is as good as none.
    revision: branch, tag or commit on the hub.
    """
    metadata = _read_card(name, revision)
    stated = {key: value for key, value in metadata.items() if key.startswith("license")}
    if stated.get("license"):
        return Licence(stated)
    directory = Path(name)
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.name.lower().startswith(TEXTS):
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                first = next((line.strip() for line in lines if line.strip()), "")
                return Licence({}, (path.name, first))
    return Licence({})


def _read_card(name: str, revision: str | None) -> dict[str, Any]:
    """The metadata of a model card, empty where there is none that can be read."""
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    where = {"revision": revision} if revision else {}
    try:
        card = Path(cached_file(name, "README.md", **where)).read_text(encoding="utf-8")
        return ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # not there, not to be fetched, or not as a card has to be
        return {}
