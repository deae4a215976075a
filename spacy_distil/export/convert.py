"""Turn a transformer pipeline of another package into one of spacy-distil, with the same weights.

The weights of the encoder, its vocabulary of pieces and all other components stay the same, bit for
bit. These things change:

- Windows are counted in pieces, and nothing is truncated. A document that was one window still is.
  A longer one is cut in other places, into windows of about the length that the encoder was trained
  on.
- Token vectors are pooled once, in the shared layer, so all pipes that share it have one pooling. A
  pipe with another pooling gets an encoder of its own.
- A literal "[SEP]" in a text is text. The pipeline writes `doc.tensor`, and `doc._.trf_data` only
  if asked to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import srsly
from confection import ConfigValidationError
from spacy.language import Language
from spacy.util import registry, replace_model_node
from thinc.api import Config, Model

from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.component.listener import Listener
from spacy_distil.component.nlp_config import set_requirements
from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import TRAINING, ConfigError, require_all
from spacy_distil.export.quantize import NEEDS as QUANTIZING
from spacy_distil.export.quantize import Quantization, quantize_converted
from spacy_distil.export.sources.packages import Package, find_package
from spacy_distil.export.sources.source import Source
from spacy_distil.pipelines import load_pipeline
from spacy_distil.runs.files import atomic_directory, scratch_directory
from spacy_distil.runs.outputs import check_output
from spacy_distil.text.plain_text import TxtDocuments

if TYPE_CHECKING:
    from spacy_distil.export.conversion_check import ConversionCheck
    from spacy_distil.export.conversion_plan import ConversionPlan

LISTENER = "spacy-distil.Listener.v1"
# The setting of a component that sets `doc._.trf_data`, as every "transformer" does.
TRF_DATA = {"set_extra_annotations": {"@annotation_setters": "spacy-distil.TrfData.v1"}}


@dataclass(frozen=True)
class Conversion:
    """Results of `convert`.

    shared: transformer component to the pooling that its pipes share.
    private: pipe with an encoder of its own to the pooling of that encoder.
    notes: changes that not every conversion makes.
    comparison: agreement of the converted pipeline with the original.
    """

    shared: dict[str, str]
    private: dict[str, str]
    notes: list[str]
    comparison: ConversionCheck


def convert(
    pipeline: str | Path,
    output: str | Path,
    *,
    corpus: str | Path | None = None,
    limit: int = 0,
    window: int | None = None,
    private_copies: bool = True,
    trf_data: bool = False,
    min_agreement: float = 0.98,
    txt_documents: TxtDocuments = "auto",
    batch_size: int = 64,
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
) -> Conversion:
    """Write a trained transformer pipeline as one of spacy-distil, if the two agree.

        result = convert("en_core_web_trf", "training/converted", corpus="corpus/dev.spacy")
        nlp = spacy.load("training/converted")

    pipeline: directory or package of a pipeline of spacy-transformers, or of
        spacy-curated-transformers.
    output: directory of the new pipeline.
    corpus: documents to compare the pipelines on: .spacy (scored too), .txt or .jsonl; `None` for a
        few sentences that come with spacy-distil.
    limit: only the first N documents; 0 for all.
    window: maximum number of pieces encoded together, special ones included; `None` for the closest
        match to the windows in training.
    private_copies: whether pipes with another pooling may get an encoder of their own.
    trf_data: whether the new pipeline sets `doc._.trf_data`, which takes memory.
    min_agreement: lowest agreement of each pipe's predictions with the original's, over the
        documents whose windows are the same in both pipelines.
    txt_documents: how .txt files are divided into documents, see `TxtDocuments`.
    batch_size: documents per batch of the comparison.
    force: whether to replace a pipeline in `output`.
    log: callback that receives a line for each step.
    RETURNS: the agreement, and the changes that the conversion made.

    Raises ConfigError, and writes nothing, if a part of the pipeline cannot be converted or the
    agreement is too low.
    """
    pipeline, output = str(pipeline), Path(output)
    check_output(output, force=force, source=Path(pipeline))
    package = find_package(pipeline)
    require_all({package.module: "interop", **TRAINING}, purpose="Converting a pipeline")
    from spacy_distil.export.conversion_check import check_conversion, read_check_documents
    from spacy_distil.export.conversion_plan import make_plan

    if not 0 <= min_agreement <= 1:
        raise ConfigError(f"min_agreement = {min_agreement}: expected 0 to 1.")
    log(f"Loading {pipeline}")
    original = load_pipeline(pipeline)
    plan = make_plan(original, package.load(), private_copies=private_copies)
    if trf_data and not plan.shared:
        plan.problems.append("it has no component that could set doc._.trf_data")
    if plan.problems:
        raise ConfigError(
            f"{pipeline} cannot be converted; nothing was written:\n"
            + "\n".join(f"- {problem}." for problem in plan.problems)
        )
    documents = read_check_documents(
        None if corpus is None else Path(corpus),
        original,
        limit=limit,
        txt_documents=txt_documents,
        log=log,
    )
    with atomic_directory(output) as directory:
        log("Converting it")
        write_converted(original, package, plan, directory, window=window, trf_data=trf_data)
        # Both from the disk: the original was converted in place, and users load the saved one.
        original, candidate = load_pipeline(pipeline), load_pipeline(str(directory))
        log(f"Comparing both on {documents.source}")
        comparison = check_conversion(
            original, candidate, plan, documents, trf_data=trf_data, batch_size=batch_size
        )
        lowest = comparison.lowest
        if lowest is not None and lowest.agreement < min_agreement:
            raise ConfigError(
                f"'{lowest.pipe}' agrees with the original in {lowest.agreement:.2%} of "
                f"{lowest.annotation} ({lowest.n:,} {lowest.unit}, in documents whose windows are "
                f"the same in both); expected at least {min_agreement:.2%} (--min-agreement). "
                "Nothing was written."
            )
    return Conversion(plan.shared, plan.private, plan.notes, comparison)


def convert_and_quantize(
    pipeline: str | Path,
    output: str | Path,
    *,
    corpus: str | Path | None = None,
    limit: int = 0,
    txt_documents: TxtDocuments = "auto",
    batch_size: int = 64,
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
    **settings: Any,
) -> tuple[Conversion, Quantization]:
    """Convert a pipeline and quantize the result to int8, as `convert` and then `quantize` do.

    Both check their result on the same documents. Only the quantized pipeline is written to
    `output`, at the end.

    settings: more arguments of `convert`. For the others see there.
    RETURNS: the results of both steps.
    Raises ConfigError, and writes nothing, if one of them fails.
    """
    pipeline, output = str(pipeline), Path(output)
    check_output(output, force=force, source=Path(pipeline))
    needs = {find_package(pipeline).module: "interop", **TRAINING, **QUANTIZING}
    require_all(needs, purpose="Converting and quantizing a pipeline")
    checked: dict[str, Any] = {
        "corpus": corpus,
        "limit": limit,
        "txt_documents": txt_documents,
        "batch_size": batch_size,
    }
    return quantize_converted(
        partial(convert, pipeline, log=log, **checked, **settings),
        output,
        force=force,
        log=log,
        **checked,
    )


def write_converted(
    nlp: Language,
    package: Package,
    plan: ConversionPlan,
    directory: Path,
    *,
    window: int | None = None,
    trf_data: bool = False,
) -> None:
    """Convert a pipeline in place and write it into a directory.

    directory: exists. Scratch files lie beside it, on the same disk.
    window, trf_data: as for `convert`.
    """
    source = plan.source
    transformers = source.find_transformers(nlp)
    config = nlp.config.copy()
    interpolated = config.interpolate()
    components, initialize = interpolated["components"], interpolated["initialize"]["components"]
    with scratch_directory(directory) as scratch:
        encoders = _Encoders(source, scratch, window)
        for name, pooling in plan.shared.items():
            transformer = transformers[name].model
            block = encoders.block(
                components[name]["model"],
                initialize.get(name, {}),
                transformer,
                pooling,
                frozen=name in plan.frozen,
            )
            get_encoder(encoders.build(block, transformer)).to_disk(directory / name)
            config["components"][name] = {
                "factory": "distil_transformer",
                "model": block,
                **(TRF_DATA if trf_data else {}),
            }
            # It loads the weights by callbacks of the package.
            config["initialize"]["components"].pop(name, None)
        blocks: dict[tuple[str, Any], dict[str, Any]] = {}
        for replacement in plan.replacements:
            reader, upstream = replacement.reader, replacement.transformer
            if upstream is None:
                assert reader.own is not None
                transformer = reader.own
                own_blocks = source.find_blocks(components[replacement.pipe])
                settings = next(
                    block for _, block in own_blocks if source.block_key(block) == reader.key
                )
            else:
                transformer = transformers[upstream].model
                settings = components[upstream]["model"]
            if replacement.private or upstream is None:
                block = encoders.block(
                    settings,
                    initialize.get(upstream or replacement.pipe, {}),
                    transformer,
                    reader.pooling,
                    frozen=replacement.frozen,
                )
                layer = encoders.build(block, transformer)
            else:
                block = {"@architectures": LISTENER, "upstream": upstream, "width": None}
                layer = Listener(upstream, transformer.get_dim("nO"))
            blocks[replacement.pipe, reader.key] = block
            pipe: Any = nlp.get_pipe(replacement.pipe)
            replace_model_node(pipe.model, reader.node, layer)
        nlp.to_disk(directory, exclude=list(plan.shared))
    for name in dict.fromkeys(replacement.pipe for replacement in plan.replacements):
        for path, old in list(source.find_blocks(components[name])):
            parent = components[name]
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = blocks[name, source.block_key(old)]
        config["components"][name] = components[name]
    _check_config(config, package)
    config.to_disk(directory / "config.cfg")
    meta = srsly.read_json(directory / "meta.json")
    srsly.write_json(directory / "meta.json", _convert_meta(meta, package, config))


class _Encoders:
    """Builds encoders of spacy-distil from encoders of another package.

    scratch: an empty directory.
    window: as for `convert`.
    """

    def __init__(self, source: Source, scratch: Path, window: int | None) -> None:
        self._source = source
        self._scratch = scratch
        self._window = window

    def block(
        self,
        settings: dict[str, Any],
        initialize: dict[str, Any],
        encoder: Model,
        pooling: str,
        *,
        frozen: bool,
    ) -> dict[str, Any]:
        """Make the config of an encoder.

        settings, initialize: as for `Source.encoder_settings`.
        """
        block = {
            "@architectures": "spacy-distil.DistilTransformer.v1",
            "pooling": pooling,
            "frozen": frozen,
            **self._source.encoder_settings(settings, initialize, encoder, window=self._window),
        }
        return registry.fill({"model": block})["model"]

    def build(self, block: dict[str, Any], encoder: Model) -> Model:
        """Build an encoder from its config, with the weights and the tokenizer of `encoder`."""
        directory = self._scratch / str(encoder.id)
        if not directory.exists():
            self._source.save_encoder(encoder, directory)
        settings = {key: value for key, value in block.items() if not key.startswith("@")}
        model = DistilTransformer(**{**settings, "name": str(directory), "device": "cpu"})
        model.initialize()
        return model


def _check_config(config: Config, package: Package) -> None:
    """Raise ConfigError if the config still names the package."""
    try:
        remaining = list(package.find_names(config.interpolate()))
    except ConfigValidationError as error:
        raise ConfigError(
            f"A variable in the config refers to a setting of {package.name}, which the "
            f"converted pipeline does not have. Replace the variable by its value. {error}"
        ) from error
    if remaining:
        raise ConfigError(
            "The pipeline cannot be converted; nothing was written. Its config names more of "
            f"{package.name} than components and listeners: {', '.join(remaining)}."
        )


def _convert_meta(meta: dict[str, Any], package: Package, config: Config) -> dict[str, Any]:
    """Replace the requirements, which `spacy package` reads."""
    name = package.name.replace("-", "[-_.]+")
    others = [
        requirement
        for requirement in meta.get("requirements", [])
        if not re.match(rf"{name}(?![-_.\w])", requirement, re.IGNORECASE)
    ]
    converted = {**meta, "requirements": others}
    set_requirements(converted, "torch", config)
    return converted
