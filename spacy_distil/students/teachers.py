"""Load teachers, with their masked-LM head if they have one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spacy_distil.engines.files import check_folder, longest_window
from spacy_distil.engines.pretrained import (
    check_config,
    check_positions,
    check_values,
    explain_pickles,
    load_fast_tokenizer,
    loading_error,
    quiet_transformers,
)
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.students.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder and its tokenizer.

    name: directory or hub name, as in the config.
    model: in eval mode, float32, without gradients and without pooler. A `...ForMaskedLM` if the
        checkpoint has a masked-LM head, otherwise the bare encoder.
    tokenizer: neither truncates nor pads.
    has_mlm_head: whether `model` has a masked-LM head.
    fingerprint: digest of the names and values of the weights.
    n_parameters, n_pieces: of the checkpoint. A smaller vocabulary changes the model alone.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    has_mlm_head: bool
    fingerprint: str
    n_parameters: int
    n_pieces: int

    @property
    def n_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def longest_block(self) -> int:
        """Most pieces in a block, special ones included. The position embeddings limit it."""
        return longest_window(self.model.config.to_dict())


def load_teacher(name: str, *, revision: str | None = None) -> Teacher:
    """Load a teacher of one of the `FAMILIES`.

    A checkpoint has a masked-LM head if it has the head's weights. Sentence encoders and ELECTRA's
    discriminator have none, so they are loaded as bare encoders.

    name: local directory or hub name. Code in a checkpoint is never run.
    revision: branch, tag or commit on the hub.
    Raises ConfigError for another family, WeightsError for a checkpoint that cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    check_folder(Path(name))
    hub_options: dict[str, Any] = {"revision": revision} if revision else {}
    with quiet_transformers(), _weights_errors(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_options)
        if config.model_type not in FAMILIES:
            raise ConfigError(
                f"teacher.name = {name!r} is a model of type {config.model_type!r}; a teacher must "
                f"be one of: {', '.join(FAMILIES)}"
            )
        check_config(name, config, **hub_options)
        model, report = AutoModelForMaskedLM.from_pretrained(
            name,
            config=config,
            # The other format is a pickle, which can run code.
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **hub_options,
        )
    encoder_prefix = f"{model.base_model_prefix}."
    missing = sorted(key for key in report["missing_keys"] if key.endswith(".weight"))
    missing_in_encoder = [key for key in missing if key.startswith(encoder_prefix)]
    if missing_in_encoder:
        raise WeightsError(
            f"teacher.name = {name!r}: the checkpoint lacks {len(missing_in_encoder)} weights of "
            f"the encoder, among them {missing_in_encoder[0]!r}. Its config.json does not fit its "
            f"weights"
        )
    has_mlm_head = not missing
    if not has_mlm_head:
        model = model.base_model  # drops the head, which has random weights
    check_positions(f"teacher.name = {name!r}", model)
    check_values(f"teacher.name = {name!r}", model.state_dict())
    model = model.float().eval().requires_grad_(False)
    return Teacher(
        name=name,
        model=model,
        tokenizer=_load_tokenizer(name, hub_options, vocab_size=int(config.vocab_size)),
        has_mlm_head=has_mlm_head,
        fingerprint=_fingerprint(model),
        n_parameters=model.num_parameters(),
        n_pieces=int(config.vocab_size),
    )


def _load_tokenizer(name: str, hub_options: dict[str, Any], *, vocab_size: int) -> Any:
    """Load the tokenizer and check it against the size of the embeddings."""
    tokenizer = load_fast_tokenizer(name, setting="teacher.name", **hub_options)
    for role in ("cls", "sep", "pad", "mask"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ConfigError(f"teacher.name = {name!r}: its tokenizer has no {role} piece")
    n_pieces = max(tokenizer.get_vocab().values()) + 1
    if n_pieces > vocab_size:
        raise WeightsError(
            f"teacher.name = {name!r}: its tokenizer has {n_pieces} pieces, but its "
            f"embeddings only {vocab_size}"
        )
    # A saved tokenizer may truncate and pad silently.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


@contextmanager
def _weights_errors(name: str) -> Iterator[None]:
    """Turn any error of transformers into a `WeightsError` that names the checkpoint."""
    try:
        yield
    except (ConfigError, WeightsError):
        raise
    except Exception as error:
        raise loading_error(
            f"teacher.name = {name!r} cannot be loaded",
            name,
            error,
            "Expected a complete Hugging Face model directory (config.json, model.safetensors, "
            "tokenizer.json), or the name of such a model on the hub."
            f"{explain_pickles(name, error)}",
        ) from error
