"""Prune a vocabulary: drop pieces that a corpus never uses, and their embeddings.

This is for WordPiece, which repeatedly takes the longest piece that fits. Fewer pieces never make
another piece fit, so text that uses only kept pieces is encoded as before. Single characters are
kept, so that a word which loses its pieces is split into smaller ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from spacy_distil.encoding import PieceTokenizer
from spacy_distil.engines.files import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    dump_config,
    first_position,
    parse_config,
)
from spacy_distil.errors import ConfigError, CorpusError, WeightsError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Names of the piece embeddings, of ModernBERT and of all other families, without their prefix.
_EMBEDDINGS = ("embeddings.tok_embeddings.weight", "embeddings.word_embeddings.weight")
# Texts tokenized at a time. It bounds the memory for a large corpus.
_BATCH_TEXTS = 1024


@dataclass(frozen=True)
class PrunedVocabulary:
    """The result of pruning a vocabulary.

    tokenizer_json: text of the new tokenizer.json, whose ids have no gaps.
    kept_ids: (n_kept,) int64, the old id of each new id, ascending. The new embeddings are
        `old[kept_ids]`.
    counts: (n_before,) int64, frequency of each old id in the corpus.
    dropped: frequencies of the dropped pieces in the corpus, in the order of the old ids.
    """

    tokenizer_json: str
    kept_ids: np.ndarray
    counts: np.ndarray
    dropped: dict[str, int]

    @property
    def n_before(self) -> int:
        """Number of pieces before."""
        return len(self.kept_ids) + len(self.dropped)

    @property
    def n_kept(self) -> int:
        """Number of kept pieces."""
        return len(self.kept_ids)


@dataclass(frozen=True)
class PruningLoss:
    """The effect of pruning on texts. A word is what the tokenizer splits into pieces.

    n_words: words of the texts.
    changed: share of the words whose pieces change.
    pieces_before, pieces_after: pieces per word.
    unknown_before, unknown_after: share of the words that are an unknown piece.
    """

    n_words: int
    changed: float
    pieces_before: float
    pieces_after: float
    unknown_before: float
    unknown_after: float


def prune_vocabulary(
    tokenizer_json: str, texts: Iterable[str], *, min_count: int = 1, keep: int | None = None
) -> PrunedVocabulary:
    """Drop pieces that do not occur in texts.

    Special and added pieces always stay. So do all single characters that can occur in text, at
    the start of a word and within it. If all pieces that occur stay, the texts are encoded as
    before.

    tokenizer_json: text of a tokenizer.json with a WordPiece model.
    texts: the corpus.
    min_count: keep pieces that occur at least this often in the corpus.
    keep: number of pieces to keep, including those that always stay. It keeps the most frequent
        pieces, and replaces `min_count`. If fewer pieces occur, others that can occur in text fill
        up in the order of their ids, which is the order of frequency in BERT's vocabularies.
    Raises ConfigError for impossible settings and for other models than WordPiece, CorpusError for
    a corpus without text.
    """
    if min_count < 1:
        raise ConfigError(f"min_count = {min_count}: expected at least 1.")
    if keep is not None and min_count != 1:
        raise ConfigError(
            f"min_count = {min_count} and keep = {keep}: expected one of them. keep takes the "
            "most frequent pieces, whatever their count."
        )
    content = _parse(tokenizer_json)
    tokenizer = _make_tokenizer(tokenizer_json)
    pieces = {i: piece for piece, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    counts = _count(tokenizer, content["model"], texts, n_ids=max(pieces) + 1)
    prefix = content["model"]["continuing_subword_prefix"]
    always = _special_ids(content).union(
        i
        for i, piece in pieces.items()
        if len(piece.removeprefix(prefix)) == 1 and _can_occur(tokenizer, piece, prefix)
    )
    # The most frequent first; ties go to the lower id.
    others = (int(i) for i in np.argsort(-counts, kind="stable"))
    others = (i for i in others if i in pieces and i not in always)
    if keep is None:
        kept = always.union(i for i in others if counts[i] >= min_count)
    elif keep < len(always):
        raise ConfigError(
            f"keep = {keep}: expected at least {len(always)}. This vocabulary has as many special "
            "pieces and single characters, which always stay."
        )
    else:
        usable = (i for i in others if counts[i] or _can_occur(tokenizer, pieces[i], prefix))
        kept = always.union(islice(usable, keep - len(always)))
    new_ids = {old: new for new, old in enumerate(sorted(kept))}
    return PrunedVocabulary(
        tokenizer_json=json.dumps(_renumber(content, new_ids), ensure_ascii=False),
        kept_ids=np.array(list(new_ids), dtype=np.int64),
        counts=counts,
        dropped={pieces[i]: int(counts[i]) for i in sorted(pieces) if i not in kept},
    )


def prune_encoder(files: Mapping[str, bytes], pruned: PrunedVocabulary) -> dict[str, bytes]:
    """Rewrite the files of an encoder for the pruned vocabulary.

    files: `config.json`, `model.safetensors` and the `tokenizer.json` that was pruned, by name.
    RETURNS: all files by name, with these three rewritten.
    Raises WeightsError for files that do not belong together.
    """
    from safetensors.numpy import load, save

    if WEIGHTS not in files:
        raise WeightsError(
            f"There is no {WEIGHTS} among {', '.join(sorted(files))}. Prune a vocabulary before "
            "you convert its encoder: start from the trained pipeline."
        )
    weights = load(files[WEIGHTS])
    ends = tuple(f".{name}" for name in _EMBEDDINGS)
    names = [name for name in weights if f".{name}".endswith(ends)]
    if len(names) != 1:
        raise WeightsError(
            f"{WEIGHTS} has {len(names)} tensors {' or '.join(_EMBEDDINGS)}, expected one. "
            "Leave vocabulary pruning out."
        )
    weights[names[0]] = _keep_rows(names[0], weights[names[0]], pruned.kept_ids)
    return {
        **files,
        CONFIG: dump_config(_renumber_config(parse_config(files), pruned.kept_ids)),
        # transformers refuses files that do not name their format.
        WEIGHTS: save(weights, metadata={"format": "pt"}),
        TOKENIZER: pruned.tokenizer_json.encode(),
    }


def prune_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, keep: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Drop all but the most frequent pieces from an encoder and its tokenizer.

    texts, keep: as in `prune_vocabulary`.
    RETURNS: the encoder, changed in place, without the masked-LM head that it may have had, and a
        new tokenizer.
    Raises as `prune_vocabulary`.
    """
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    pruned = prune_vocabulary(tokenizer.backend_tokenizer.to_str(), texts, keep=keep)
    encoder: PreTrainedModel = model.base_model
    config = _renumber_config(encoder.config.to_dict(), pruned.kept_ids)
    for name in ("vocab_size", *(key for key in config if key.endswith("_token_id"))):
        setattr(encoder.config, name, config[name])
    weight = encoder.get_input_embeddings().weight.detach()
    embeddings = _keep_rows("The table of embeddings", weight, pruned.kept_ids)
    encoder.set_input_embeddings(
        nn.Embedding.from_pretrained(
            embeddings, freeze=False, padding_idx=encoder.config.pad_token_id
        )
    )
    return encoder, PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(pruned.tokenizer_json),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **tokenizer.special_tokens_map,
    )


def pruning_loss(old: PieceTokenizer, new: PieceTokenizer, texts: Iterable[str]) -> PruningLoss:
    """Measure the effect of a pruned vocabulary on texts.

    old, new: the tokenizers before and after pruning.
    texts: preferably others than the corpus that the vocabulary was pruned to.
    """
    before, after = (_make_tokenizer(tokenizer.to_str()) for tokenizer in (old, new))
    n_words = n_changed = 0
    # Before and after.
    n_pieces, n_unknown = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    for batch in _batches(texts):
        encoded = (t.encode_batch(batch, add_special_tokens=False) for t in (before, after))
        for pair in zip(*encoded, strict=True):
            words = [_words(encoding) for encoding in pair]
            n_words += len(words[0])
            n_changed += sum(a != b for a, b in zip(*words, strict=True))
            n_pieces += [len(encoding.ids) for encoding in pair]
            n_unknown += [
                encoding.tokens.count(tokenizer.model.unk_token)
                for encoding, tokenizer in zip(pair, (before, after), strict=True)
            ]
    if n_words == 0:
        raise CorpusError("The texts to measure pruning on have no words: expected at least one.")
    return PruningLoss(
        n_words=n_words,
        changed=n_changed / n_words,
        pieces_before=float(n_pieces[0] / n_words),
        pieces_after=float(n_pieces[1] / n_words),
        unknown_before=float(n_unknown[0] / n_words),
        unknown_after=float(n_unknown[1] / n_words),
    )


def _parse(tokenizer_json: str) -> dict[str, Any]:
    """Parse a tokenizer.json with a WordPiece model."""
    try:
        content: dict[str, Any] = json.loads(tokenizer_json)
        kind = content["model"]["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{TOKENIZER} is not a saved tokenizer with a model and its type: {error!r}."
        ) from error
    if kind != "WordPiece":
        raise ConfigError(
            f"The tokenizer's model is {kind}; only the vocabulary of a WordPiece model can be "
            "pruned (BERT, DistilBERT, ELECTRA, MPNet). Leave vocabulary pruning out."
        )
    return content


def _make_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Load a tokenizer that reads text as `PieceTokenizer` does."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _count(
    tokenizer: Tokenizer, model: Mapping[str, Any], texts: Iterable[str], *, n_ids: int
) -> np.ndarray:
    """Count how often each id occurs: (n_ids,) int64.

    Pieces that fit the start of an unknown word count too. Without them, shorter pieces might fit,
    and the word would no longer be unknown.
    """
    counts = np.zeros(n_ids, dtype=np.int64)
    unknown = model["vocab"].get(model["unk_token"])
    for batch in _batches(texts):
        encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids
            counts += np.bincount(np.array(ids, dtype=np.int64), minlength=n_ids)
            if unknown not in ids:
                continue
            for i, (start, end) in zip(ids, encoding.offsets, strict=True):
                if i == unknown:
                    for fitting in _start_of_unknown(tokenizer, model, text[start:end]):
                        counts[fitting] += 1
    if not counts.any():
        raise CorpusError("The corpus to prune the vocabulary to has no text in it.")
    return counts


def _start_of_unknown(tokenizer: Tokenizer, model: Mapping[str, Any], word: str) -> Iterator[int]:
    """Find the ids that WordPiece matches before it gives up on a word."""
    if tokenizer.normalizer is not None:
        word = tokenizer.normalizer.normalize_str(word).strip()
    if len(word) > model["max_input_chars_per_word"]:
        return
    start, prefix = 0, ""
    while start < len(word):
        for end in range(len(word), start, -1):
            piece_id = model["vocab"].get(prefix + word[start:end])
            if piece_id is not None:
                yield piece_id
                start, prefix = end, model["continuing_subword_prefix"]
                break
        else:
            return


def _can_occur(tokenizer: Tokenizer, piece: str, prefix: str) -> bool:
    """Whether this piece can occur in text. It cannot if text is split or normalized within it.

    Examples: "[unused1]" cannot occur, nor "##." if punctuation is a word of its own.
    """
    text = piece.removeprefix(prefix)
    if text != piece:
        text *= 2  # places the second one within a word
    normal = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return normal == text
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)] == [text]


def _special_ids(content: Mapping[str, Any]) -> set[int]:
    """Collect the ids that other parts of the tokenizer refer to. They must stay."""
    ids = {added["id"] for added in content["added_tokens"]}
    unknown = content["model"]["vocab"].get(content["model"]["unk_token"])
    if unknown is not None:
        ids.add(unknown)

    def collect(i: int) -> int:
        ids.add(i)
        return i

    _map_processor(content.get("post_processor"), collect)
    _map_padding(content.get("padding"), collect)
    return ids


def _renumber(content: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Renumber a tokenizer.json to the kept ids. new_ids: new id by old id."""
    model = content["model"]
    by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
    vocab = {piece: new_ids[i] for piece, i in by_id if i in new_ids}
    return {
        **content,
        "padding": _map_padding(content.get("padding"), new_ids.__getitem__),
        "added_tokens": [
            {**added, "id": new_ids[added["id"]]} for added in content["added_tokens"]
        ],
        "post_processor": _map_processor(content.get("post_processor"), new_ids.__getitem__),
        "model": {**model, "vocab": vocab},
    }


def _map_padding(padding: Any, new: Callable[[int], int]) -> Any:
    return padding and {**padding, "pad_id": new(padding["pad_id"])}


def _map_processor(processor: Any, new: Callable[[int], int]) -> Any:
    """Map the ids of the special pieces that a post-processor adds."""
    if processor is None:
        return None
    mapped = dict(processor)
    if processor["type"] == "Sequence":
        mapped["processors"] = [_map_processor(part, new) for part in processor["processors"]]
    elif processor["type"] == "TemplateProcessing":
        mapped["special_tokens"] = {
            name: {**special, "ids": [new(i) for i in special["ids"]]}
            for name, special in processor["special_tokens"].items()
        }
    else:  # BertProcessing, RobertaProcessing: (piece, id)
        for end in ("sep", "cls"):
            if end in processor:
                piece, i = processor[end]
                mapped[end] = [piece, new(i)]
    return mapped


def _keep_rows(name: str, embeddings: Any, kept_ids: np.ndarray) -> Any:
    """Copy the embeddings of the kept pieces.

    name: of the embeddings, for errors.
    embeddings: (n_before, n_embedding), of numpy or torch.
    Raises WeightsError if they are another tokenizer's.
    """
    if len(embeddings) <= kept_ids[-1]:
        raise WeightsError(
            f"{name} has {len(embeddings):,} rows, but the tokenizer whose vocabulary was pruned "
            f"has a piece {kept_ids[-1]:,}. They do not belong together."
        )
    return embeddings[kept_ids]


def _renumber_config(config: Mapping[str, Any], kept_ids: np.ndarray) -> dict[str, Any]:
    """Update the number of pieces and the ids of special pieces in a `config.json`.

    Raises WeightsError if it is another tokenizer's, or the encoder's positions would change.
    """
    new_ids = {int(old): new for new, old in enumerate(kept_ids)}
    renumbered = {**config, "vocab_size": len(kept_ids)}
    for setting, value in config.items():
        if setting.endswith("_token_id") and isinstance(value, int):
            if value not in new_ids:
                raise WeightsError(
                    f"{setting} = {value} in {CONFIG} is none of the special pieces in "
                    f"{TOKENIZER}. The files do not belong together."
                )
            renumbered[setting] = new_ids[value]
    if first_position(renumbered) != first_position(config):
        raise WeightsError(
            f"pad_token_id = {config['pad_token_id']} becomes {renumbered['pad_token_id']} if "
            f"pieces in front of it are dropped, and {config['model_type']!r} encoders number "
            "positions from there on. Leave vocabulary pruning out."
        )
    return renumbered


def _words(encoding: Encoding) -> list[list[str]]:
    """Group the pieces by word."""
    words: list[list[str]] = []
    last = None
    for word, piece in zip(encoding.word_ids, encoding.tokens, strict=True):
        if word != last:
            words.append([])
            last = word
        words[-1].append(piece)
    return words


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _BATCH_TEXTS)):
        yield batch
