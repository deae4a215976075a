"""The packages whose pipelines can be converted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from spacy_distil.errors import ConfigError
from spacy_distil.export.sources.source import Source
from spacy_distil.pipelines import read_config


@dataclass(frozen=True)
class Package:
    """A package with pipelines to convert.

    name: as pip knows it. The names of its functions in configs begin with it.
    factory: factory of its transformer components.
    load: imports what `convert` asks of it; needs the package.
    """

    name: str
    factory: str
    load: Callable[[], Source]

    @property
    def module(self) -> str:
        """Name of the package in Python."""
        return self.name.replace("-", "_")

    def find_names(self, config: dict[str, Any], path: str = "") -> Iterator[str]:
        """Find the places in a config that name something of the package."""
        for key, value in config.items():
            if isinstance(value, dict):
                yield from self.find_names(value, f"{path}{key}.")
            elif key.startswith("@") and str(value).startswith(f"{self.name}."):
                yield f"[{path.removesuffix('.')}] {key} = {value!r}"


def _load_spacy_transformers() -> Source:
    from spacy_distil.export.sources import spacy_transformers

    return spacy_transformers


def _load_curated() -> Source:
    from spacy_distil.export.sources import curated

    return curated


PACKAGES = (
    Package("spacy-transformers", "transformer", _load_spacy_transformers),
    Package("spacy-curated-transformers", "curated_transformer", _load_curated),
)


def find_package(pipeline: str) -> Package:
    """Find the package that a pipeline is made with, without loading the pipeline.

    Raises ConfigError if there is none, or more than one.
    """
    components = read_config(pipeline)["components"]
    factories = {name: block.get("factory") for name, block in components.items()}
    found = [
        package
        for package in PACKAGES
        if package.factory in factories.values() or any(package.find_names(components))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{pipeline} cannot be converted: it has components of "
            f"{' and of '.join(package.name for package in found)}. Convert a pipeline of one."
        )
    pipes = ", ".join(f"{name} ({factory})" for name, factory in factories.items())
    kinds = " or ".join(f'"{package.factory}" of {package.name}' for package in PACKAGES)
    raise ConfigError(
        f"{pipeline} cannot be converted: it has no transformer component (factory {kinds}); it "
        f"has {pipes or 'no components'}."
    )
