"""What is to be done to a spacy-transformers pipeline, found out before anything is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from spacy.language import Language
from spacy.pipeline.tok2vec import Tok2Vec, Tok2VecListener
from spacy_transformers.layers import TransformerModel
from spacy_transformers.pipeline_component import Transformer
from thinc.api import Model

from spacy_distil.export.trf import (
    Reader,
    find_readers,
    find_transformers,
    note_on_windows,
    problems_of_readers,
    problems_of_transformer,
)


@dataclass(frozen=True)
class Place:
    """A reader, and what takes its place.

    pipe: name of the pipe that it is in.
    transformer: name of the component that it reads; `None` for one with a transformer of its own.
    private: whether it becomes an encoder inside the pipe, and not a listener.
    """

    pipe: str
    reader: Reader
    transformer: str | None
    private: bool

    @property
    def frozen(self) -> bool:
        """Whether training never changed the encoder on its behalf."""
        return self.reader.grad_factor == 0


@dataclass
class Plan:
    """What is to be done.

    shared: the pooling of each transformer component.
    frozen: the transformer components that no pipe trains.
    places: every reader of the pipeline.
    notes: what will not be as it was.
    problems: why nothing can be done.
    """

    shared: dict[str, str] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    places: list[Place] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def private(self) -> dict[str, str]:
        """The pipes with an encoder of their own, and its pooling."""
        return {place.pipe: place.reader.pooling for place in self.places if place.private}


def make_plan(nlp: Language, *, private_copies: bool = True) -> Plan:
    """Find out what is to be converted, and what cannot be.

    private_copies: whether pipes of another pooling may get an encoder of their own.
    """
    components = nlp.config.interpolate()["components"]
    transformers = find_transformers(nlp)
    plan = Plan()
    for name, pipe in nlp.components:
        if name in transformers:
            plan.problems += problems_of_transformer(name, pipe)
        else:
            plan.problems += problems_of_readers(name, pipe, components[name])
    read, beside = _who_reads_what(nlp, plan)
    if not transformers and not read:
        found = ", ".join(f"{name} ({factory})" for name, factory in nlp.pipe_factories.items())
        plan.problems.append(
            'it has no component of spacy-transformers (factory "transformer"); it has '
            f"{found or 'no components'}"
        )
        if "curated_transformer" in nlp.pipe_factories.values():
            plan.problems.append(
                "its transformer is one of spacy-curated-transformers, whose weights are not read; "
                "it can teach a pipeline of spacy-distil, with 'spacy distil pipeline'"
            )
    for name in transformers:
        readers = [reader for _, reader, transformer in read if transformer == name]
        counts = Counter(reader.pooling for reader in readers)
        plan.shared[name] = max(counts, key=counts.__getitem__, default="mean")
        if readers and not any(reader.grad_factor for reader in readers):
            plan.frozen.add(name)
            plan.notes.append(f"'{name}' becomes frozen, as no pipe trains it (grad_factor = 0)")
        if note := note_on_windows(components[name]["model"]["get_spans"]):
            plan.notes.append(f"'{name}' {note}")
        if components[name]["model"].get("grad_scaler_config"):
            plan.notes.append(f"'{name}' loses its grad_scaler_config, which only training uses")
    for name, reader, transformer in read:
        why = ""
        if transformer is not None and reader.pooling != plan.shared[transformer]:
            why = f"has the pooling {reader.pooling!r}, '{transformer}' has "
            why += f"{plan.shared[transformer]!r}"
        elif name in beside:
            why = f"has another writer of doc.tensor between '{transformer}' and itself"
        place = Place(name, reader, transformer, private=transformer is None or bool(why))
        plan.places.append(place)
        if why and private_copies:
            plan.notes.append(f"'{name}' {why}: it gets a copy of the encoder for itself")
        elif why:
            plan.problems.append(
                f"'{name}' {why}: it needs a copy of the encoder for itself, which is not allowed"
            )
        if reader.grad_factor != 1 and not (
            place.frozen if place.private else transformer in plan.frozen
        ):
            plan.notes.append(
                f"'{name}' has grad_factor = {reader.grad_factor:g}, which has no counterpart: if "
                "the pipeline is trained further, its gradient counts in full"
            )
    return plan


def _who_reads_what(
    nlp: Language, plan: Plan
) -> tuple[list[tuple[str, Reader, str | None]], set[str]]:
    """Every reader with its pipe and the transformer component that it reads; and the pipes that,
    converted, have another writer of doc.tensor between them and that component.
    """
    read: list[tuple[str, Reader, str | None]] = []
    beside: set[str] = set()
    transformer: str | None = None
    writer: tuple[str, bool] | None = None  # of doc.tensor, and whether it is a transformer
    transformers = find_transformers(nlp)
    for name, pipe in nlp.components:
        if isinstance(pipe, Transformer):
            transformer, writer = name, (name, True)
            continue
        if isinstance(pipe, Tok2Vec):
            writer = (name, False)
            continue
        if transformers:
            plan.problems += _problems_of_stock_listeners(name, pipe, writer)
        for reader in find_readers(pipe):
            if reader.own is not None:
                read.append((name, reader, None))
            elif transformer is None or reader.upstream not in ("*", transformer):
                plan.problems.append(
                    f"'{name}' listens to {reader.upstream!r}, but what it reads is "
                    f"{transformer!r}, the last transformer before it"
                )
            else:
                read.append((name, reader, transformer))
                if writer != (transformer, True):
                    beside.add(name)
    return read, beside


def _problems_of_stock_listeners(
    name: str, pipe: Any, writer: tuple[str, bool] | None
) -> Iterator[str]:
    """Pipes that listen to a tok2vec component must not come to read the transformer's vectors."""
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model):
        return
    for node in model.walk():
        if isinstance(node, Tok2VecListener) and writer != (node.upstream_name, False):
            yield (
                f"'{name}' listens to the tok2vec component {node.upstream_name!r}. Converted, a "
                "transformer writes doc.tensor too: the listener must have the name of the tok2vec "
                "component as its upstream, and no transformer between them"
            )


def encoders_of(pipe: Any) -> list[TransformerModel]:
    """The transformers that a pipe runs itself."""
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model):
        return []
    return [node for node in model.walk() if isinstance(node, TransformerModel)]
