"""A pipeline of spacy-transformers into one of ours, with the same weights.

What is kept, bit for bit: the encoder's weights, its vocabulary of pieces, and every other
component. What is different:

- Windows are counted in pieces, not tokens, and nothing is truncated. A document that was one
  window is the same window, and a longer one is cut elsewhere, into windows of about the length
  that the encoder was trained on.
- Token vectors are made once, in the shared layer, so that all pipes that share it have one
  pooling. A pipe with another pooling gets an encoder of its own, inside it.
- A literal "[SEP]" in a text is text. `doc._.trf_data` is not written; `doc.tensor` is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import srsly
from confection import ConfigValidationError
from spacy.language import Language
from spacy.util import registry, replace_model_node
from thinc.api import Config, Model

from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.component.listener import Listener
from spacy_distil.component.nlp_config import set_requirement
from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import ConfigError, require
from spacy_distil.pipelines import load_pipeline
from spacy_distil.runs.files import atomic_directory, check_output

if TYPE_CHECKING:
    from spacy_transformers.layers import TransformerModel

    from spacy_distil.export.conversion_check import Comparison
    from spacy_distil.export.conversion_plan import Plan

LISTENER = "spacy-distil.Listener.v1"


@dataclass(frozen=True)
class Conversion:
    """What became of a pipeline.

    shared: the pooling of each transformer component, which its pipes share.
    private: the pipes that have an encoder of their own, and its pooling.
    notes: what is not as it was, beside what every conversion changes.
    comparison: of the converted pipeline with the original.
    """

    shared: dict[str, str]
    private: dict[str, str]
    notes: list[str]
    comparison: Comparison


def convert(
    pipeline: str | Path,
    output: Path,
    *,
    documents: Path | None = None,
    limit: int = 0,
    window: int | None = None,
    private_copies: bool = True,
    min_agreement: float = 0.98,
    batch_size: int = 64,
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
) -> Conversion:
    """Write a trained spacy-transformers pipeline as one of ours, if the two agree.

    pipeline: its directory or package name.
    output: directory of the new one.
    documents: what to compare the two on: .spacy, .txt or .jsonl; `None` for a few sentences that
        come with the package.
    limit: only the first N documents; 0 for all.
    window: most pieces encoded together, special ones included; `None` for what comes closest to
        the windows that the pipeline was trained with (`trf.choose_windows`).
    private_copies: whether pipes of another pooling may get an encoder of their own.
    min_agreement: least agreement of each pipe's predictions, over the documents of which both
        pipelines encode the same windows.
    batch_size: documents at a time while they are compared.
    force: replace a pipeline that `output` holds.
    log: gets a line for each step.

    Raises ConfigError, and writes nothing, where something cannot be converted.
    """
    require("spacy_transformers", extra="interop", purpose="Converting its pipelines")
    from spacy_distil.export.conversion_check import compare, read
    from spacy_distil.export.conversion_plan import make_plan

    if not 0 <= min_agreement <= 1:
        raise ConfigError(f"min_agreement = {min_agreement}: expected 0 to 1.")
    check_output(output, force=force, source=Path(pipeline))
    log(f"Loading {pipeline}")
    original = load_pipeline(str(pipeline))
    plan = make_plan(original, private_copies=private_copies)
    if plan.problems:
        raise ConfigError(
            f"{pipeline} cannot be converted; nothing was written:\n"
            + "\n".join(f"- {problem}." for problem in plan.problems)
        )
    corpus = read(documents, original, limit=limit)
    with atomic_directory(output) as directory:
        log("Converting it")
        write_converted(original, plan, directory, window=window)
        # Both read back: the original was converted in place, and what is compared is what will be
        # loaded.
        original, candidate = load_pipeline(str(pipeline)), load_pipeline(str(directory))
        log(f"Comparing both on {corpus.source}")
        comparison = compare(original, candidate, plan, corpus, batch_size=batch_size)
        lowest = comparison.lowest
        if lowest is not None and lowest.agreement < min_agreement:
            raise ConfigError(
                f"'{lowest.pipe}' agrees with the original in {lowest.agreement:.2%} of "
                f"{lowest.annotation} ({lowest.n:,} {lowest.unit}, in documents of which both "
                f"encode the same windows); at least {min_agreement:.2%} was asked for "
                "(--min-agreement). Nothing was written."
            )
    return Conversion(plan.shared, plan.private, plan.notes, comparison)


def write_converted(
    nlp: Language, plan: Plan, directory: Path, *, window: int | None = None
) -> None:
    """Convert a pipeline in place, as planned, and write it into a directory.

    window: as for `convert`.
    """
    from spacy_distil.export.trf import block_key, find_blocks, find_transformers

    transformers = find_transformers(nlp)
    config = nlp.config.copy()
    components = config.interpolate()["components"]
    with TemporaryDirectory() as scratch:
        encoders = _Encoders(Path(scratch), window)
        for name, pooling in plan.shared.items():
            transformer = transformers[name].model
            block = encoders.block(
                components[name]["model"], transformer, pooling, frozen=name in plan.frozen
            )
            get_encoder(encoders.build(block, transformer)).to_disk(directory / name)
            config["components"][name] = {"factory": "distil_transformer", "model": block}
        blocks: dict[tuple[str, Any], dict[str, Any]] = {}
        for place in plan.places:
            reader = place.reader
            if place.transformer is None:
                transformer = reader.own
                found = find_blocks(components[place.pipe])
                settings = next(block for _, block in found if block_key(block) == reader.key)
            else:
                transformer = transformers[place.transformer].model
                settings = components[place.transformer]["model"]
            if place.private or place.transformer is None:
                block = encoders.block(settings, transformer, reader.pooling, frozen=place.frozen)
                replacement = encoders.build(block, transformer)
            else:
                block = {"@architectures": LISTENER, "upstream": place.transformer, "width": None}
                replacement = Listener(place.transformer, transformer.get_dim("nO"))
            blocks[place.pipe, reader.key] = block
            pipe: Any = nlp.get_pipe(place.pipe)
            replace_model_node(pipe.model, reader.node, replacement)
        nlp.to_disk(directory, exclude=list(plan.shared))
    for name in dict.fromkeys(place.pipe for place in plan.places):
        for path, old in list(find_blocks(components[name])):
            parent = components[name]
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = blocks[name, block_key(old)]
        config["components"][name] = components[name]
    _check_config(config)
    config.to_disk(directory / "config.cfg")
    meta = srsly.read_json(directory / "meta.json")
    srsly.write_json(directory / "meta.json", _convert_meta(meta))


class _Encoders:
    """Makes encoders of ours out of theirs.

    scratch: an empty directory.
    window: as for `convert`.
    """

    def __init__(self, scratch: Path, window: int | None) -> None:
        self._scratch = scratch
        self._window = window

    def block(
        self, settings: dict[str, Any], source: TransformerModel, pooling: str, *, frozen: bool
    ) -> dict[str, Any]:
        """The config of an encoder.

        settings: the config of `source`.
        """
        from spacy_distil.export.trf import choose_windows

        window, overlap = choose_windows(settings["get_spans"], source, window=self._window)
        block = {
            "@architectures": "spacy-distil.DistilTransformer.v1",
            "name": settings["name"],
            "window": window,
            "overlap": overlap,
            "pooling": pooling,
            "mixed_precision": settings.get("mixed_precision", False),
            "frozen": frozen,
        }
        return registry.fill({"model": block})["model"]

    def build(self, block: dict[str, Any], source: TransformerModel) -> Model:
        """An encoder of that config, with the weights and the tokenizer of `source`."""
        directory = self._scratch / str(source.id)
        if not directory.exists():
            source.transformer.save_pretrained(directory, safe_serialization=True)
            source.tokenizer.save_pretrained(directory)
        settings = {key: value for key, value in block.items() if not key.startswith("@")}
        model = DistilTransformer(**{**settings, "name": str(directory), "device": "cpu"})
        model.initialize()
        return model


def _check_config(config: Config) -> None:
    """Raise ConfigError where something of spacy-transformers is left over."""
    try:
        left = list(_find_left(config.interpolate()))
    except ConfigValidationError as error:
        raise ConfigError(
            "The config refers to a setting of spacy-transformers by a variable, which the "
            f"converted pipeline does not have. Write down its value there. {error}"
        ) from error
    if left:
        raise ConfigError(
            "The pipeline cannot be converted; nothing was written. Its config names more of "
            f"spacy-transformers than components and listeners: {', '.join(left)}."
        )


def _find_left(config: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _find_left(value, f"{path}{key}.")
        elif key.startswith("@") and str(value).startswith("spacy-transformers."):
            yield f"[{path.removesuffix('.')}] {key} = {value!r}"


def _convert_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """The meta with what the converted pipeline needs installed, for `spacy package`."""
    others = [
        requirement
        for requirement in meta.get("requirements", [])
        if not re.match(r"spacy[-_.]+transformers\b", requirement, re.IGNORECASE)
    ]
    converted = {**meta, "requirements": others}
    set_requirement(converted, "torch")
    return converted
