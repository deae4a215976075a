"""Loading a teacher, and finding out whether it has a masked-LM head."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spacy_distil.engines.files import longest_window
from spacy_distil.engines.pretrained import load_fast_tokenizer, quiet_transformers
from spacy_distil.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# The families whose layers and heads `students`, `heads` and `attention_taps` know.
FAMILIES = (
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "mpnet",
    "albert",
)


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder and its tokenizer.

    name: what the config called it, a directory or a hub name.
    model: in eval mode, float32, without gradients and without pooler. A `...ForMaskedLM` where the
        checkpoint has that head, the bare encoder where it does not.
    tokenizer: truncation and padding switched off.
    has_head: whether `model` has a masked-LM head.
    fingerprint: of the weights' names and values.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    has_head: bool
    fingerprint: str

    @property
    def n_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def longest_block(self) -> int:
        """How many pieces, special ones included, its position embeddings have room for."""
        return longest_window(self.model.config.to_dict())


def load_teacher(name: str, *, revision: str | None = None) -> Teacher:
    """Load a teacher of one of the `FAMILIES`.

    A head is recognised by its weights: there is none in a sentence encoder, nor in ELECTRA's
    discriminator, which are taught from as bare encoders.

    name: local directory or hub name; code that comes with a checkpoint is never run.
    revision: branch, tag or commit on the hub.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    where: dict[str, Any] = {"revision": revision} if revision else {}
    with quiet_transformers(), _loading(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        if config.model_type not in FAMILIES:
            raise ConfigError(
                f"teacher.name = {name!r} is a model of type {config.model_type!r}; a teacher must "
                f"be one of: {', '.join(FAMILIES)}"
            )
        model, report = AutoModelForMaskedLM.from_pretrained(
            name, config=config, trust_remote_code=False, output_loading_info=True, **where
        )
    encoder_prefix = f"{model.base_model_prefix}."
    missing = sorted(key for key in report["missing_keys"] if key.endswith(".weight"))
    lost = [key for key in missing if key.startswith(encoder_prefix)]
    if lost:
        raise WeightsError(
            f"teacher.name = {name!r}: the checkpoint lacks {len(lost)} weights of the encoder, "
            f"among them {lost[0]!r}. Its config.json does not fit its weights"
        )
    has_head = not missing
    if not has_head:
        model = model.base_model  # what stands on top of it was initialised at random
    model = model.float().eval().requires_grad_(False)
    return Teacher(
        name=name,
        model=model,
        tokenizer=_load_tokenizer(name, where, vocab_size=int(config.vocab_size)),
        has_head=has_head,
        fingerprint=_fingerprint(model),
    )


def _load_tokenizer(name: str, where: dict[str, Any], *, vocab_size: int) -> Any:
    tokenizer = load_fast_tokenizer(name, setting="teacher.name", **where)
    for role in ("cls", "sep", "pad", "mask"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ConfigError(f"teacher.name = {name!r}: its tokenizer has no {role} piece")
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > vocab_size:
        raise WeightsError(
            f"teacher.name = {name!r}: its tokenizer has {needed} pieces, but its "
            f"embeddings only {vocab_size}"
        )
    # A saved tokenizer may truncate and pad, and would do so silently.
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
def _loading(name: str) -> Iterator[None]:
    """Turn what transformers raises about a checkpoint into a `WeightsError` that names it."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        hint = (
            "The directory exists; is it a complete Hugging Face model directory "
            "(config.json, model.safetensors, tokenizer.json)?"
            if Path(name).is_dir()
            else "No such directory here. A hub name needs the network, or a download cached "
            "earlier; a local teacher is given by its directory"
        )
        raise WeightsError(f"teacher.name = {name!r} cannot be loaded: {error}\n{hint}") from error
