"""The embeddings of a smaller vocabulary: in the files of an encoder, in a model, in a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spacy_distil.engines.files import CONFIG, TOKENIZER, WEIGHTS, dump_config, parse_config
from spacy_distil.engines.weights_file import (
    StoredWeight,
    dump_weights_file,
    read_weights_file,
)
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.students.vocabulary.kinds import Text
from spacy_distil.students.vocabulary.pruning import PrunedVocabulary, prune_vocabulary
from spacy_distil.students.vocabulary.renumbering import renumber_config, special_config_ids
from spacy_distil.students.vocabulary.settings import VocabularySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from spacy_distil.students.teachers import Teacher

# Names of the piece embeddings, of ModernBERT and of all other families, without their prefix.
_EMBEDDINGS = ("embeddings.tok_embeddings.weight", "embeddings.word_embeddings.weight")


def prune_encoder(files: Mapping[str, bytes], pruned: PrunedVocabulary) -> dict[str, bytes]:
    """Rewrite the files of an encoder for the pruned vocabulary.

    files: `config.json`, `model.safetensors` and the `tokenizer.json` that was pruned, by name.
    RETURNS: all files by name, with these three rewritten.
    Raises WeightsError for files that do not belong together.
    """
    if WEIGHTS not in files:
        raise WeightsError(
            f"There is no {WEIGHTS} among {', '.join(sorted(files))}. Prune a vocabulary before "
            "you convert its encoder: start from the trained pipeline."
        )
    weights = read_weights_file(files[WEIGHTS])
    ends = tuple(f".{name}" for name in _EMBEDDINGS)
    names = [name for name in weights if f".{name}".endswith(ends)]
    if len(names) != 1:
        raise WeightsError(
            f"{WEIGHTS} has {len(names)} tensors {' or '.join(_EMBEDDINGS)}, expected one. "
            "Leave vocabulary pruning out."
        )
    embeddings = weights[names[0]]
    rows = np.frombuffer(embeddings.data, np.uint8).reshape(embeddings.shape[0], -1)
    kept = _keep_rows(names[0], rows, pruned.kept_ids)
    weights[names[0]] = StoredWeight(
        embeddings.kind, (len(kept), *embeddings.shape[1:]), kept.reshape(-1).data
    )
    return {
        **files,
        CONFIG: dump_config(renumber_config(parse_config(files), pruned.kept_ids)),
        WEIGHTS: b"".join(dump_weights_file(weights)),
        TOKENIZER: pruned.tokenizer_json.encode(),
    }


def prune_teacher(
    teacher: Teacher, texts: Iterable[Text], settings: VocabularySettings
) -> tuple[Teacher, PrunedVocabulary]:
    """Give a teacher the vocabulary that its student will have.

    Then both read the same pieces. The teacher predicts masked pieces among the kept ones.

    Raises as `prune_vocabulary`, and ConfigError if special pieces alone would stay.
    """
    pruned = prune_vocabulary(
        teacher.tokenizer.backend_tokenizer.to_str(),
        texts,
        min_count=settings.min_count or 1,
        size=settings.size,
        special=special_config_ids(teacher.model.config.to_dict()),
    )
    if {*pruned.kept_ids.tolist()} <= {*teacher.tokenizer.all_special_ids}:
        setting = (
            f"min_count = {settings.min_count}"
            if settings.size is None
            else f"size = {settings.size}"
        )
        raise ConfigError(
            f"With {setting}, the vocabulary would have {pruned.n_kept} special pieces and no "
            "others: expected at least one. Set a larger size or a lower min_count, or give text "
            "that the tokenizer has pieces for."
        )
    model, tokenizer = prune_model(teacher.model, teacher.tokenizer, pruned)
    return replace(teacher, model=model, tokenizer=tokenizer), pruned


def prune_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pruned: PrunedVocabulary
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Make an encoder and a tokenizer with a smaller vocabulary.

    model: with or without a masked-LM head, and without pooler. It does not change.
    RETURNS: a model of the same class, in the same mode, and a new tokenizer.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from spacy_distil.students.making import new_model

    config = deepcopy(model.config)
    for name, value in renumber_config(config.to_dict(), pruned.kept_ids).items():
        if name == "vocab_size" or name.endswith("_token_id"):
            setattr(config, name, value)
    smaller = new_model(model, config).to(model.dtype)
    weights = model.state_dict()
    smaller.load_state_dict(
        {
            # The embeddings, and the masked-LM head's decoder.
            name: weights[name]
            if weights[name].shape == own.shape
            else _keep_rows(name, weights[name], pruned.kept_ids)
            for name, own in smaller.state_dict().items()
        }
    )
    smaller.tie_weights()
    smaller.train(model.training).requires_grad_(next(model.parameters()).requires_grad)
    return smaller.to(model.device), PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(pruned.tokenizer_json),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **tokenizer.special_tokens_map,
    )


def _keep_rows(name: str, embeddings: Any, kept_ids: np.ndarray) -> Any:
    """Copy the embeddings of the kept pieces.

    name: of the embeddings, for errors.
    embeddings: (n_before, n_embedding), of numpy or torch.
    Raises WeightsError if they are another tokenizer's.
    """
    last = int(kept_ids.max())
    if len(embeddings) <= last:
        raise WeightsError(
            f"{name} has {len(embeddings):,} rows, but the tokenizer whose vocabulary was pruned "
            f"has a piece {last:,}. They do not belong together."
        )
    return embeddings[kept_ids]
