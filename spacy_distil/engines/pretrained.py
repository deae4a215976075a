"""Load encoders and tokenizers of transformers, by name or from the files of a saved encoder."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub.utils import logging as hub_logging
from transformers.activations import ACT2FN
from transformers.utils import cached_file, logging

from spacy_distil.encoding import PieceTokenizer
from spacy_distil.encoding.pieces import probe_patterns
from spacy_distil.engines.changes import UNCHANGED, EncoderChanges, fix_runtime_choices
from spacy_distil.engines.config_check import ACTIVATIONS, check_settings, require_settings
from spacy_distil.engines.files import (
    CONFIG,
    LAYER_NUMBER,
    WEIGHTS,
    check_folder,
    forget_pages,
    parse_config,
)
from spacy_distil.engines.probe import check_kind, check_outputs, find_class
from spacy_distil.engines.weights_file import StoredWeight, read_weights_file
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.runs.digests import Content, write_sums

PICKLES = (
    "Pickled weights (pytorch_model.bin) are never read, because they can run code. If you trust "
    'them, convert them once: python -c "import torch, safetensors.torch as s; s.save_file({k: '
    "v.clone() for k, v in torch.load('pytorch_model.bin', 'cpu', weights_only=True).items()}, "
    "'model.safetensors', {'format': 'pt'})\""
)

# The types that a file of weights names.
_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_KINDS = {dtype: kind for kind, dtype in _TYPES.items()}
# Numbers that are checked at once, so that the check takes no memory to speak of.
_CHECKED = 1 << 20


def load_encoder(name: str, changes: EncoderChanges = UNCHANGED) -> transformers.PreTrainedModel:
    """Load an encoder, in float32 and without its pooler, by directory or hub name.

    changes: to its config. The weights of layers that these leave out are not loaded.
    Raises ConfigError for a model that cannot be an encoder, WeightsError if weights are missing.
    """
    check_folder(Path(name))
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        check_kind(name, config)
        check_config(name, config)
        changes.apply(config)
        with quiet_transformers():
            # AutoModel would import the configs of all families, which takes a second.
            model, info = find_class(config).from_pretrained(
                name,
                config=config,
                # The other format is a pickle, which can run code.
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                # Refused below, with their names.
                ignore_mismatched_sizes=True,
                **_build_arguments(config),
            )
    except (ConfigError, WeightsError):
        raise
    except Exception as error:  # each version and family of transformers raises its own
        raise loading_error(
            f"No encoder could be loaded from name = {name!r}",
            name,
            error,
            "Expected a directory with config.json, model.safetensors and a tokenizer, or the name "
            "of such a model on the Hugging Face hub (which needs the network)."
            f"{explain_pickles(name, error)}",
        ) from error
    # A checkpoint may hold more than the encoder (pooler, heads), but not less.
    weights = model.state_dict()
    mismatched = [
        # transformers 4.53 gives the name of the weight only.
        (entry, None, weights[entry].shape) if isinstance(entry, str) else entry
        for entry in info["mismatched_keys"]
    ]
    _check_weights(f"name = {name!r}", info["missing_keys"], (), mismatched)
    check_positions(f"name = {name!r}", model)
    check_values(f"name = {name!r}", model.state_dict())
    model = model.float().eval()
    check_outputs(name, model)
    return model


def load_saved_encoder(
    files: Mapping[str, Content], changes: EncoderChanges
) -> transformers.PreTrainedModel:
    """Load an encoder, in float32, from the files that `TorchEngine.to_files` returned.

    Embeddings, which are by far the largest weights, are the memory of `model.safetensors` itself
    if that can be written to, as a mapped file can. Each text reads a few rows of them. The others
    are copied, because products read all of them, and aligned memory is a little faster.

    Raises WeightsError if config and weights are damaged or do not belong together.
    """
    content = memoryview(files[WEIGHTS])
    weights = {name: load_weight(weight) for name, weight in read_weights_file(content).items()}
    settings = parse_config(files)
    try:
        config_class = transformers.CONFIG_MAPPING[settings["model_type"]]
    except KeyError as error:
        raise WeightsError(
            f"{CONFIG} has model_type {settings['model_type']!r}, which transformers "
            f"{transformers.__version__} does not know. Install a newer transformers."
        ) from error
    try:
        config = config_class.from_dict(settings)
    except Exception as error:  # each version and family of transformers raises its own
        raise WeightsError(f"{CONFIG} is not a {settings['model_type']} config: {error}") from error
    _check_family(config, settings)
    fix_runtime_choices(config)
    changes.apply(config)
    model_class = find_class(config)
    if model_class is None:
        raise WeightsError(
            f"{CONFIG} has model_type {settings['model_type']!r}, of which transformers "
            f"{transformers.__version__} has no encoder. Save or copy the pipeline again."
        )
    try:
        # Random weights would cost memory and time, and the saved ones replace them.
        with init_empty_weights(include_buffers=False):
            # Not by AutoModel: see above.
            model = model_class._from_config(config, **_build_arguments(config))
    except Exception as error:  # each version and family of transformers raises its own
        raise WeightsError(
            f"{CONFIG} describes no encoder that transformers {transformers.__version__} can "
            f"build: {error}"
        ) from error
    built = model.state_dict()
    expected = {name: tensor.shape for name, tensor in built.items()}
    if changes.layer is not None:
        # Layers above it may have been saved.
        above = [name for name in weights if _is_above(name, changes.layer)]
        for name in above:
            del weights[name]
    _check_weights(
        WEIGHTS,
        expected.keys() - weights.keys(),
        weights.keys() - expected.keys(),
        [
            (name, tuple(weights[name].shape), tuple(shape))
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        ],
    )
    integers = [
        k for k, v in built.items() if v.is_floating_point() > weights[k].is_floating_point()
    ]
    if integers:
        raise WeightsError(
            f"{WEIGHTS} has {_first(integers)} of type {weights[integers[0]].dtype}, expected "
            "floating-point numbers. Take the model before it was quantized."
        )
    check_values(WEIGHTS, weights)
    if not content.readonly:
        embeddings = {
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Embedding)
        }
        weights = {k: value if k in embeddings else value.clone() for k, value in weights.items()}
        forget_pages(content)
    model.load_state_dict(weights, assign=True)
    return model.float()


def explain_pickles(name: str, error: Exception) -> str:
    """Say how to convert pickled weights, if a model has no others; else return "".

    name: directory or hub name. error: of transformers, which found no weights.
    """
    if any(Path(name).glob("pytorch_model*.bin")) or "model.safetensors" in str(error):
        return f" {PICKLES}"
    return ""


def check_config(name: str, config: transformers.PretrainedConfig, **version: Any) -> None:
    """Check the `config.json` of a Hugging Face model as it was written, and fix what it says about
    the form of the output.

    name: directory or hub name.
    config: as transformers read it. It has its defaults in place of what is missing.
    version: arguments that choose a version on the hub, such as `revision`.
    Raises WeightsError for a setting that is missing or cannot be right.
    """
    settings, _ = transformers.PretrainedConfig.get_config_dict(name, **version)
    check_settings(settings)
    _check_family(config, settings)
    fix_runtime_choices(config)


def check_positions(source: str, model: transformers.PreTrainedModel) -> None:
    """Raise ConfigError if a model's config asks for positions that transformers leaves out.

    source: of the model, for the message.
    """
    kind = getattr(model.config, "position_embedding_type", None) or "absolute"
    if kind.startswith("relative_key") and not any(
        "distance_embedding" in name for name in model.state_dict()
    ):
        raise ConfigError(
            f'{source}: config.json has "position_embedding_type": {kind!r}, which transformers '
            f"{transformers.__version__} does not compute. Install transformers 4."
        )


def check_values(source: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise WeightsError, which names the first few, for weights with values that are not finite.

    source: of the weights, for the message.
    weights: by name. Integers pass.
    """
    wrong = [name for name, weight in weights.items() if not _is_finite(weight)]
    if wrong:
        raise WeightsError(
            f"The weights of {source} have values that are not finite numbers (NaN or infinity), "
            f"in {_first(wrong)}. They are damaged, or come from a training that diverged: take an "
            "earlier version of the model."
        )


def save_encoder(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, to: Path
) -> None:
    """Save an encoder and its tokenizer as a Hugging Face model with digests.

    to: an empty or a new directory.
    """
    with quiet_transformers():
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
    write_sums(to)


def load_tokenizer(name: str) -> PieceTokenizer:
    """Load the tokenizer of a Hugging Face model, by directory or hub name, for encoding."""
    # As it will be saved. The tokenizer of transformers is gone before another one is made.
    content = load_fast_tokenizer(name, setting="name").backend_tokenizer.to_str()
    return PieceTokenizer.from_str(content)


def load_fast_tokenizer(name: str, *, setting: str, **version: Any) -> Any:
    """Load the fast tokenizer of a Hugging Face model.

    name: directory or hub name.
    setting: the setting that has the name, for errors.
    version: arguments that choose a version on the hub, such as `revision`.
    """
    try:
        with quiet_transformers():
            file = _find_tokenizer_file(name, version)
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    name, use_fast=True, trust_remote_code=False, **version
                )
            except ValueError:
                if file is None:
                    raise
                # Its class needs a newer transformers, but tokenizer.json is enough.
                tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(name, **version)
            if file is not None and tokenizer.is_fast and _may_differ_from_file(name, tokenizer):
                special = tokenizer.special_tokens_map
                del tokenizer  # a large one takes hundreds of megabytes
                tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=file, **special)
    except Exception as error:  # it tries several formats, and each fails in its own way
        raise loading_error(
            f"No tokenizer could be loaded from {setting} = {name!r}",
            name,
            error,
            "Expected tokenizer.json, or a vocabulary to make it from. To make it from a "
            "SentencePiece model (spm.model or the like), install two more packages: "
            "pip install sentencepiece protobuf",
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{setting} = {name!r} has no fast tokenizer (tokenizer.json), which gives the "
            "character offsets that align pieces with tokens."
        )
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        # transformers 5 returns such a tokenizer for a directory without one.
        raise WeightsError(
            f"No tokenizer could be loaded from {setting} = {name!r}: it has special pieces only. "
            "Expected tokenizer.json, or a vocabulary to make it from."
        )
    problem = f"The tokenizer of {setting} = {name!r} fails on text"
    probe_patterns(tokenizer.backend_tokenizer, problem)
    return tokenizer


def loading_error(failed: str, name: str, error: Exception, expected: str) -> WeightsError:
    """Make the error of a model that transformers cannot load: the hub's problem, or what was
    expected.

    failed: how the message begins. name: directory or hub name. error: of transformers.
    """
    if problem := hub_problem(name, error):
        return WeightsError(f"{failed}: {problem}")
    # transformers goes on with a list of all its families.
    reason = str(error).split(", or contain one of the following")[0]
    return WeightsError(f"{failed}: {reason}\n{expected}")


def hub_problem(name: str, error: BaseException) -> str | None:
    """Say in one sentence why a hub name cannot be had.

    error: the error of transformers, caused by one of the hub.
    RETURNS: None for a directory, or if the model is there, but has another problem.
    """
    if Path(name).is_dir():
        return None
    kinds: set[str] = set()  # names of classes, because they have moved between versions
    cause: BaseException | None = error
    while cause is not None:
        kinds.update(kind.__name__ for kind in type(cause).__mro__)
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in kinds:
        return "it is gated on the Hugging Face hub. Accept its conditions there, and log in."
    if "RevisionNotFoundError" in kinds:
        return "it has no such revision on the Hugging Face hub."
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return (
            "it is neither a directory here nor a model on the Hugging Face hub. Check the name; "
            "if the model is private, log in."
        )
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return (
            "it is neither a directory here nor a model in the cache, and the Hugging Face hub "
            "cannot be reached, or HF_HUB_OFFLINE forbids it."
        )
    return None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars, and reports on weights that are left out on purpose, or on attempts to
    reach the hub.
    """
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if progress:
            logging.enable_progress_bar()


def _build_arguments(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """Return the arguments to build a model with: no pooler, which nothing here uses, and no flash
    attention, which needs half precision.
    """
    parameters = inspect.signature(find_class(config).__init__).parameters
    arguments: dict[str, Any] = {}
    if "add_pooling_layer" in parameters:
        arguments["add_pooling_layer"] = False
    if config.model_type == "modernbert":  # chooses flash attention by itself
        arguments["attn_implementation"] = "sdpa"
    return arguments


def _check_family(config: transformers.PretrainedConfig, settings: Mapping[str, Any]) -> None:
    """Raise WeightsError if a `config.json` lacks what its family needs, or names an activation
    that transformers does not know.

    config: as transformers read the settings. It has its defaults in place of what is missing.
    """
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    aliases = {name: config.attribute_map.get(name, name) for name in needed}
    require_settings(
        settings, *({name, alias} for name, alias in aliases.items() if hasattr(config, name))
    )
    for name in ACTIVATIONS:
        if name in settings and settings[name] not in ACT2FN:
            raise WeightsError(
                f'{CONFIG} has "{name}": {settings[name]!r}, which transformers '
                f"{transformers.__version__} does not know. Expected one of "
                f"{', '.join(sorted(ACT2FN))}."
            )


def store_weight(weight: torch.Tensor) -> StoredWeight:
    """Describe a weight for a file. The data share its memory, if it is contiguous on the CPU."""
    flat = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
    data = _little_endian(flat.numpy(), weight.dtype)
    return StoredWeight(_KINDS[weight.dtype], tuple(weight.shape), data.data)


def load_weight(weight: StoredWeight) -> torch.Tensor:
    """Return a weight that shares the memory of its file, or is a copy if that is read-only: the
    weights of a model may learn.
    """
    dtype = _TYPES[weight.kind]
    if not weight.data:  # torch takes no empty memory
        return torch.empty(weight.shape, dtype=dtype)
    data = _little_endian(np.frombuffer(weight.data, np.uint8), dtype)
    if data.flags.writeable:
        return torch.frombuffer(data, dtype=dtype).reshape(weight.shape)
    copy = torch.empty(weight.shape, dtype=dtype)
    copy.flatten().view(torch.uint8).numpy()[:] = data
    return copy


def _little_endian(data: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Turn numbers from the order of bytes of this machine to that of files, or back.

    data: (n_bytes,) uint8.
    """
    if sys.byteorder == "little":
        return data
    size = dtype.itemsize // (1 + dtype.is_complex)
    return np.ascontiguousarray(data.reshape(-1, size)[:, ::-1]).ravel()


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel():
        return True
    # torch does not compare the formats of 8 bits. Both ends are NaN if any value is.
    return all(
        math.isfinite(end)
        for part in weight.flatten().split(_CHECKED)
        for end in (part.float() if part.element_size() == 1 else part).aminmax()
    )


def _first(names: Sequence[str]) -> str:
    """Name the first few."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _check_weights(
    source: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Any, Any]],
) -> None:
    """Raise WeightsError if weights do not fit a config, naming the first few.

    mismatched: name, shape (None if not known) and expected shape of each.
    """
    problems = [
        *(f"{name} is missing" for name in sorted(missing)),
        *(f"{name} is not part of the encoder" for name in sorted(unexpected)),
        *(
            f"{name} has {f'shape {tuple(shape)}' if shape else 'another shape'}, "
            f"expected {tuple(expected)}"
            for name, shape, expected in mismatched
        ),
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"The weights of {source} do not fit config.json: {'; '.join(problems[:5])}{more}."
        )


def _is_above(name: str, n_layers: int) -> bool:
    """Check whether a weight belongs to a layer above the first `n_layers`."""
    number = LAYER_NUMBER.search(name)
    return number is not None and int(number[1]) >= n_layers


def _find_tokenizer_file(name: str, version: dict[str, Any]) -> str | None:
    """Return the path of a model's `tokenizer.json`, or None if it has none."""
    try:
        return cached_file(name, "tokenizer.json", **version)
    except OSError:  # the caller tries to load the tokenizer next, which reports the problem
        return None


def _may_differ_from_file(name: str, tokenizer: Any) -> bool:
    """Check whether transformers may have changed the normalization in `tokenizer.json` to the one
    that is usual for its family.
    """
    has_no_config = Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").exists()
    # Version 5 and newer drop the character table of some SentencePiece models.
    return has_no_config or type(tokenizer.backend_tokenizer.model).__name__ == "Unigram"
