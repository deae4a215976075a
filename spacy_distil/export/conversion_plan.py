"""The plan for converting a pipeline, made before anything changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from spacy.language import Language
from spacy.pipeline.tok2vec import Tok2Vec, Tok2VecListener
from thinc.api import Model

from spacy_distil.export.sources.source import REDUCTIONS, Reader, Source


@dataclass(frozen=True)
class Replacement:
    """A reader and its replacement.

    pipe: name of the pipe that contains the reader.
    transformer: name of the component that it reads; `None` for a reader with a transformer of its
        own.
    private: whether an encoder inside the pipe replaces the reader, and not a listener.
    """

    pipe: str
    reader: Reader
    transformer: str | None
    private: bool

    @property
    def frozen(self) -> bool:
        """Whether the pipe passed no gradient to the encoder in training."""
        return self.reader.grad_factor == 0


@dataclass
class ConversionPlan:
    """How to convert a pipeline.

    source: the package that the pipeline is made with.
    shared: transformer component to its pooling.
    frozen: the transformer components that no pipe trains.
    replacements: one for each reader of the pipeline.
    notes: changes that not every conversion makes.
    problems: reasons why the pipeline cannot be converted.
    """

    source: Source
    shared: dict[str, str] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    replacements: list[Replacement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def private(self) -> dict[str, str]:
        """Pipe with an encoder of its own to the pooling of that encoder."""
        return {each.pipe: each.reader.pooling for each in self.replacements if each.private}


def make_plan(nlp: Language, source: Source, *, private_copies: bool = True) -> ConversionPlan:
    """Plan the conversion of a pipeline, and find the parts that cannot be converted.

    source: the package that the pipeline is made with.
    private_copies: whether pipes with another pooling may get an encoder of their own.
    """
    components = nlp.config.interpolate()["components"]
    transformers = source.find_transformers(nlp)
    plan = ConversionPlan(source)
    for name, pipe in nlp.components:
        if name in transformers:
            plan.problems += source.problems_of_component(name, pipe)
            plan.problems += source.problems_of_encoder(name, transformers[name].model)
        elif isinstance(model := getattr(pipe, "model", None), Model):
            plan.problems += _problems_of_pipe(name, model, components[name], source)
    upstreams, obstructed = _find_upstreams(nlp, plan)
    if plan.problems:
        return plan
    for name, pipe in transformers.items():
        readers = [reader for _, reader, upstream in upstreams if upstream == name]
        counts = Counter(reader.pooling for reader in readers)
        plan.shared[name] = max(counts, key=counts.__getitem__, default="mean")
        if source.is_frozen(pipe):
            plan.frozen.add(name)
        elif readers and not any(reader.grad_factor for reader in readers):
            plan.frozen.add(name)
            plan.notes.append(f"'{name}' becomes frozen, as no pipe trains it (grad_factor = 0)")
        plan.notes += source.notes_on(name, pipe, components[name])
    for name, reader, upstream in upstreams:
        reason = ""  # for a copy of the encoder
        if upstream is not None and reader.pooling != plan.shared[upstream]:
            reason = f"has the pooling {reader.pooling!r}, '{upstream}' has "
            reason += f"{plan.shared[upstream]!r}"
        elif name in obstructed:
            reason = f"has another writer of doc.tensor between '{upstream}' and itself"
        replacement = Replacement(name, reader, upstream, private=upstream is None or bool(reason))
        plan.replacements.append(replacement)
        if reason and private_copies:
            plan.notes.append(f"'{name}' {reason}: it gets its own copy of the encoder")
        elif reason:
            plan.problems.append(
                f"'{name}' {reason}: it needs its own copy of the encoder, which is not allowed"
            )
        if reader.grad_factor != 1 and not (
            replacement.frozen if replacement.private else upstream in plan.frozen
        ):
            plan.notes.append(
                f"'{name}' has grad_factor = {reader.grad_factor:g}, which has no counterpart: if "
                "the pipeline is trained further, its gradient counts in full"
            )
    return plan


def _find_upstreams(
    nlp: Language, plan: ConversionPlan
) -> tuple[list[tuple[str, Reader, str | None]], set[str]]:
    """Find the transformer component that each reader reads.

    plan: gets the problems.
    RETURNS: for each reader its pipe, itself and the component; and the pipes that, once converted,
        have another writer of doc.tensor between the component and themselves.
    """
    upstreams: list[tuple[str, Reader, str | None]] = []
    obstructed: set[str] = set()
    transformer: str | None = None
    # The last writer of doc.tensor, and whether it is a transformer.
    writer: tuple[str, bool] | None = None
    transformers = plan.source.find_transformers(nlp)
    for name, pipe in nlp.components:
        if name in transformers:
            transformer, writer = name, (name, True)
            continue
        if isinstance(pipe, Tok2Vec):
            writer = (name, False)
            continue
        if transformers:
            plan.problems += _problems_of_stock_listeners(name, pipe, writer)
        model = getattr(pipe, "model", None)
        for reader in plan.source.find_readers(model) if isinstance(model, Model) else ():
            if reader.own is not None:
                upstreams.append((name, reader, None))
            elif transformer is None or reader.upstream not in ("*", transformer):
                plan.problems.append(
                    f"'{name}' listens to {reader.upstream!r}, but it reads {transformer!r}, the "
                    "last transformer before it"
                )
            else:
                upstreams.append((name, reader, transformer))
                if writer != (transformer, True):
                    obstructed.add(name)
    return upstreams, obstructed


def _problems_of_stock_listeners(
    name: str, pipe: Any, writer: tuple[str, bool] | None
) -> Iterator[str]:
    """Find listeners to a tok2vec component that would read the vectors of a transformer."""
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


def _problems_of_pipe(
    name: str, model: Model, config: dict[str, Any], source: Source
) -> Iterator[str]:
    """Find the reasons why a pipe that reads transformers cannot be converted.

    config: the config of the pipe.
    """
    if refused := list(source.problems_of_listeners(name, model)):
        yield from refused
        return
    readers = source.find_readers(model)
    unknown = {reader.pooling for reader in readers} - {*REDUCTIONS.values()}
    for pooling in unknown:
        yield (
            f"'{name}' has the pooling {pooling!r}; expected one of "
            f"{', '.join(f'{layer}.v1' for layer in REDUCTIONS)}"
        )
    for reader in readers:
        if reader.own is not None:
            yield from source.problems_of_encoder(name, reader.own)
    blocks = Counter(source.block_key(block) for _, block in source.find_blocks(config))
    covered = {node.id for reader in readers for node in reader.node.walk()}
    if any(
        (source.is_listener(node) or source.is_encoder(node)) and node.id not in covered
        for node in model.walk()
    ):
        yield f"'{name}' uses hidden states that are not pooled to tokens"
    elif any(reader.node is model for reader in readers):
        yield f"'{name}' has a listener for its whole model"
    elif not unknown and blocks != Counter(reader.key for reader in readers):
        yield f"'{name}' has other listeners in its config than in its model"
    if sum(reader.own is not None for reader in readers) > 1:
        yield f"'{name}' has several transformers of its own"
