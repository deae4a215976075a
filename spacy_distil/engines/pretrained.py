"""Encoders and tokenizers of Hugging Face models, as they come from a directory or the hub."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers.utils import cached_file, logging

from spacy_distil.encoding import PieceTokenizer
from spacy_distil.engines.changes import UNCHANGED, EncoderChanges, settle
from spacy_distil.engines.probe import find_class, refuse_by_deed, refuse_by_kind
from spacy_distil.errors import ConfigError, WeightsError


def load_encoder(name: str, changes: EncoderChanges = UNCHANGED) -> transformers.PreTrainedModel:
    """Load an encoder, in float32 and without its pooler, by directory or hub name.

    changes: to its config; weights of layers that these leave out are not loaded.
    Raises ConfigError for a model that cannot be an encoder, WeightsError where weights are
    missing.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        refuse_by_kind(name, config)
        settle(config)
        changes.apply(config)
        with quiet_transformers():
            model, info = transformers.AutoModel.from_pretrained(
                name,
                config=config,
                # The other format is a pickle, which can run code.
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                # Refused below, with their names.
                ignore_mismatched_sizes=True,
                **building(config),
            )
    except ConfigError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"No encoder could be loaded from name = {name!r}: {error}\n"
            "Expected a directory with config.json, model.safetensors and a tokenizer, or the name "
            "of such a model on the Hugging Face hub (which needs the network)."
        ) from error
    # A checkpoint may hold more than the encoder (pooler, heads), but not less.
    weights = model.state_dict()
    mismatched = [
        # transformers 4.53 names the weight alone.
        (entry, None, weights[entry].shape) if isinstance(entry, str) else entry
        for entry in info["mismatched_keys"]
    ]
    refuse_gaps(f"name = {name!r}", info["missing_keys"], (), mismatched)
    model = model.float().eval()
    refuse_by_deed(name, model)
    return model


def load_tokenizer(name: str) -> PieceTokenizer:
    """Load the tokenizer of a Hugging Face model by directory or hub name, as encoding wants it."""
    tokenizer = load_fast_tokenizer(name, setting="name")
    return PieceTokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def load_fast_tokenizer(name: str, *, setting: str, **where: Any) -> Any:
    """Load the fast tokenizer of a Hugging Face model.

    name: directory or hub name.
    setting: what the name is called where the user wrote it, for errors.
    where: arguments that say which version on the hub, such as `revision`.
    """
    try:
        with quiet_transformers():
            file = _find_tokenizer_file(name, where)
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    name, use_fast=True, trust_remote_code=False, **where
                )
            except ValueError:
                if file is None:
                    raise
                # A class that only a newer transformers knows; tokenizer.json says all there is.
                tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(name, **where)
            if file is not None and tokenizer.is_fast and _rebuilds(name, tokenizer):
                tokenizer = transformers.PreTrainedTokenizerFast(
                    tokenizer_file=file, **tokenizer.special_tokens_map
                )
    except Exception as error:  # it tries several formats, and each fails in its own way
        raise WeightsError(
            f"No tokenizer could be loaded from {setting} = {name!r}: {error}\n"
            "Expected tokenizer.json, or a vocabulary that it can be made from. Where that is a "
            "model of SentencePiece (spm.model or the like), making it takes two packages more: "
            "pip install sentencepiece protobuf"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{setting} = {name!r} has no fast tokenizer (tokenizer.json), which gives the "
            "character offsets that align pieces with tokens."
        )
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        # What transformers 5 makes of a directory without a tokenizer.
        raise WeightsError(
            f"No tokenizer could be loaded from {setting} = {name!r}: it has special pieces only. "
            "Expected tokenizer.json, or a vocabulary that it can be made from."
        )
    return tokenizer


def _find_tokenizer_file(name: str, where: dict[str, Any]) -> str | None:
    """The path of a model's `tokenizer.json`, `None` where it has none."""
    try:
        return cached_file(name, "tokenizer.json", **where)
    except OSError:  # what is wrong is said by what comes next
        return None


def _rebuilds(name: str, tokenizer: Any) -> bool:
    """Whether transformers may have made a tokenizer otherwise than its `tokenizer.json` says: with
    the normalization that is usual in its family.
    """
    is_bare = Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").exists()
    # From version 5 on it leaves out the table of characters of some models of SentencePiece.
    return is_bare or type(tokenizer.backend_tokenizer.model).__name__ == "Unigram"


def building(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """Arguments for building a model: without the pooler, which nothing here uses, where a family
    has one; and without flash attention, which works in half precision alone, where a family takes
    it by itself.
    """
    takes = inspect.signature(find_class(config).__init__).parameters
    arguments: dict[str, Any] = {}
    if "add_pooling_layer" in takes:
        arguments["add_pooling_layer"] = False
    if config.model_type == "modernbert":
        arguments["attn_implementation"] = "sdpa"
    return arguments


def refuse_gaps(
    source: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Any, Any]],
) -> None:
    """Raise WeightsError where weights do not fit a config, naming the first few.

    mismatched: name, shape found (None where it is not known) and shape expected of each.
    """
    problems = [
        *(f"{name} is missing" for name in sorted(missing)),
        *(f"{name} is not part of the encoder" for name in sorted(unexpected)),
        *(
            f"{name} has {f'shape {tuple(found)}' if found else 'another shape'}, "
            f"expected {tuple(wanted)}"
            for name, found, wanted in mismatched
        ),
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"The weights of {source} do not fit config.json: {'; '.join(problems[:5])}{more}."
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars, and without reports on weights that are left out on purpose."""
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
