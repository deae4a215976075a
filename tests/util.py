"""Small encoders, pipelines and examples for the tests."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import spacy
import torch
import transformers
from spacy.tokens import Doc
from spacy.training import Example
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.export.families import READERS

# Types that spaCy's stubs do not know.
registry: Any = spacy.registry

# CamemBERT is RoBERTa under another name.
FAMILIES = tuple(model_type for model_type in READERS if model_type != "camembert")
WIDTH = 32
LAYERS = 2
LISTENER = {"@architectures": "spacy-distil.Listener.v1"}
STOCK_LISTENER = {"@architectures": "spacy.Tok2VecListener.v1", "width": WIDTH}

SENTENCES = (
    "Ann visited Rome in the spring of 2021, and wrote about it.",
    "We like the unbelievable pizza of Oslo; don't you?",
    "The tokenizer's pieces — all of them — overlap (more or less) with tokens.",
    "Ça va très bien à Zürich, naïve façade: 東京 と 北京 は 大きい 都市 です。",
    "Reading, writing and arithmetic aren't what they used to be!",
)


# Encoders


def build_tokenizer(family: str) -> Tokenizer:
    """Make a fast tokenizer for SENTENCES, of the same kind as the real ones of a family.

    Its pieces are single characters (bytes) and some beginnings of words. They are written out,
    because trainers break ties at random.
    """
    if family in ("roberta", "modernbert"):
        return _byte_level(family)
    if family in ("albert", "deberta-v2", "xlm-roberta"):
        return _unigram(family)
    return _wordpiece(family)


def special_pieces(family: str) -> dict[str, str]:
    """Return a family's special pieces by their names in transformers."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    pieces = {
        "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
        "mpnet": ("<pad>", "[UNK]", "<s>", "</s>", "<mask>"),
        "roberta": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
        "xlm-roberta": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
    }
    return dict(
        zip(names, pieces.get(family, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), strict=True)
    )


def _wordpiece(family: str) -> Tokenizer:
    """Make a tokenizer that lower-cases, as the uncased models do."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    words = _words(tokenizer, (*SENTENCES, string.printable))
    characters = sorted({character for word in words for character in word})
    beginnings = [word[:end] for word in words for end in (2, 3, 4)]
    own = [*characters, *(f"##{character}" for character in characters)]
    own += [*beginnings, "##ing", "##able", "##er"]
    if family == "mpnet":
        vocab = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *own, "<mask>"]
    else:
        vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *own]
    vocab = list(dict.fromkeys(vocab))
    tokenizer.model = models.WordPiece(_numbered(vocab), unk_token="[UNK]")
    return _with_special_pieces(tokenizer, family)


def _byte_level(family: str) -> Tokenizer:
    """Make a tokenizer of bytes. RoBERTa's offsets exclude spaces, ModernBERT's include the space
    before a word. ModernBERT's also has pieces for runs of spaces, which are not special.
    """
    is_roberta = family == "roberta"
    first = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if is_roberta else ["<|endoftext|>"]
    vocab = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for word in dict.fromkeys(w for s in SENTENCES for w, _ in split.pre_tokenize_str(s)):
        for end in range(2, min(len(word), 5) + 1):
            if word[:end] not in vocab:
                vocab.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(_numbered(vocab), merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    if is_roberta:
        tokenizer.add_special_tokens(first)
        ends = [(piece, vocab.index(piece)) for piece in ("</s>", "<s>")]
        tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
        return tokenizer
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(first)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    return _with_special_pieces(tokenizer, family)


def _unigram(family: str) -> Tokenizer:
    """Make a tokenizer as transformers does from SentencePiece's models. Those have a table of
    characters for normalization, which is NFKC and turns line breaks and the like into spaces.
    """
    table = [
        normalizers.Replace(Regex(r"[\x00-\x08\x0e-\x1f\u200b\ufeff]"), ""),
        normalizers.Replace(Regex(r"\s"), " "),
        normalizers.NFKC(),
    ]
    one_space = normalizers.Replace(Regex(" {2,}"), " ")
    if family == "albert":
        quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        lower = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        steps, split = [*quotes, *lower, *table, one_space], True
    elif family == "deberta-v2":
        steps, split = [normalizers.Strip(), *table, one_space], False
    else:
        steps, split = table, True
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    before = [pre_tokenizers.WhitespaceSplit()] if split else []

    vocab = {
        "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "deberta-v2": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>"],
    }[family]
    special = special_pieces(family)
    unknown = vocab.index(special["unk_token"])
    scores = dict.fromkeys(vocab, 0.0)
    tokenizer = Tokenizer(models.Unigram([*scores.items()], unknown, False))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    words = _words(tokenizer, (*SENTENCES, " ".join(string.printable)))
    for word in ("▁", *words, "ing", "able", "er"):
        scores.setdefault(word[:5], -6.0 - len(scores) / 1000)
        scores.setdefault(word[:3], -8.0 - len(scores) / 1000)
    for character in sorted({character for word in words for character in word}):
        scores.setdefault(character, -9.0 - len(scores) / 1000)
    scores.setdefault(special["mask_token"], 0.0)
    tokenizer.model = models.Unigram([*scores.items()], unknown, False)
    return _with_special_pieces(tokenizer, family)


def _words(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Return the words that a tokenizer splits into pieces."""
    return [
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
            tokenizer.normalizer.normalize_str(text)
        )
    ]


def _with_special_pieces(tokenizer: Tokenizer, family: str) -> Tokenizer:
    """Add a special piece at each end of a window."""
    special = special_pieces(family)
    lstrip = family in ("albert", "modernbert", "mpnet", "xlm-roberta")
    mask = AddedToken(special.pop("mask_token"), lstrip=lstrip)
    tokenizer.add_special_tokens([*special.values(), mask])
    first, last = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[first, "$A", last],
        pair=[first, "$A", *([last] * (2 if first == "<s>" else 1)), "$B:1", f"{last}:1"],
        special_tokens=[(piece, tokenizer.token_to_id(piece)) for piece in (first, last)],
    )
    return tokenizer


def _numbered(vocab: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(vocab)}


def write_encoder(
    directory: Path,
    family: str,
    *,
    positions: int = 72,
    dropout: float = 0.0,
    width: int = WIDTH,
    layers: int = LAYERS,
    activation: str = "gelu",
    seed: int = 0,
) -> Path:
    """Write a random encoder and its tokenizer as a Hugging Face model directory.

    positions: most pieces in a window, special ones included.
    activation: of the feed-forward layers.
    """
    tokenizer = build_tokenizer(family)
    special = special_pieces(family)
    config = _make_config(
        family,
        tokenizer,
        special,
        positions=positions,
        dropout=dropout,
        width=width,
        layers=layers,
        activation=activation,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config)
        # As after training: no bias is zero, no layer norm the identity.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
        directory
    )
    return directory


def _make_config(
    family: str,
    tokenizer: Tokenizer,
    special: dict[str, str],
    *,
    positions: int,
    dropout: float,
    width: int,
    layers: int,
    activation: str,
) -> Any:
    cls, sep = (tokenizer.token_to_id(special[f"{name}_token"]) for name in ("cls", "sep"))
    common = {
        "vocab_size": tokenizer.get_vocab_size(),
        "initializer_range": 0.1,
        "pad_token_id": tokenizer.token_to_id(special["pad_token"]),
        "bos_token_id": cls,
        "eos_token_id": sep,
        "max_position_embeddings": positions,
    }
    bert = {
        **common,
        "hidden_size": width,
        "hidden_act": activation,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    # Their positions count from the padding's id on.
    roberta = {**bert, "max_position_embeddings": positions + 2}
    if family == "bert":
        return transformers.BertConfig(**bert)
    if family == "electra":
        # Embeddings of another width than the layers', as in the small models of this family.
        return transformers.ElectraConfig(**bert, embedding_size=width // 2)
    if family == "albert":
        return transformers.AlbertConfig(**bert, embedding_size=width // 2)
    if family == "roberta":
        return transformers.RobertaConfig(**roberta, type_vocab_size=1)
    if family == "xlm-roberta":
        return transformers.XLMRobertaConfig(**roberta, type_vocab_size=1)
    if family == "mpnet":
        return transformers.MPNetConfig(**roberta)
    if family == "deberta-v2":
        # As in version 3, with distances that soon share a bucket.
        return transformers.DebertaV2Config(
            **bert,
            relative_attention=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
            type_vocab_size=0,
        )
    if family == "modernbert":
        # Every second layer sees a few neighbours alone.
        return transformers.ModernBertConfig(
            **common,
            cls_token_id=cls,
            sep_token_id=sep,
            hidden_size=width,
            hidden_activation=activation,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            embedding_dropout=dropout,
            mlp_dropout=dropout,
            attention_dropout=dropout,
            global_attn_every_n_layers=2,
            local_attention=8,
        )
    assert family == "distilbert", family
    return transformers.DistilBertConfig(
        **common,
        dim=width,
        activation=activation,
        n_layers=layers,
        n_heads=4,
        hidden_dim=2 * width,
        dropout=dropout,
        attention_dropout=dropout,
    )


def encoder_of(nlp: Any) -> EncoderShim:
    """Return the encoder of a pipeline's component "transformer"."""
    return get_encoder(nlp.get_pipe("transformer").model)


def torch_model_of(nlp: Any) -> torch.nn.Module:
    """Return the torch module of a pipeline's component "transformer"."""
    engine: Any = encoder_of(nlp).engine
    return engine.model


def weights_of(nlp: Any) -> dict[str, np.ndarray]:
    """Copy the encoder's weights."""
    return copied(torch_model_of(nlp))


def copied(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copy the weights of a module."""
    state = module.state_dict()
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray], atol: float = 1e-6) -> bool:
    """Check whether two sets of weights are equal."""
    assert left.keys() == right.keys()
    return all(np.allclose(left[name], right[name], rtol=0, atol=atol) for name in left)


# Pipelines


def head_config(pipe: str, listener: dict[str, Any]) -> dict[str, Any]:
    """Return the model config of a pipe that listens."""
    models_by_pipe: dict[str, dict[str, Any]] = {
        "tagger": {"@architectures": "spacy.Tagger.v2"},
        "morphologizer": {"@architectures": "spacy.Tagger.v2"},
        "ner": {
            "@architectures": "spacy.TransitionBasedParser.v2",
            "state_type": "ner",
            "extra_state_tokens": False,
            "hidden_width": 16,
            "maxout_pieces": 2,
            "use_upper": False,
        },
        "textcat": {
            "@architectures": "spacy.TextCatReduce.v1",
            "exclusive_classes": True,
            "use_reduce_first": False,
            "use_reduce_last": False,
            "use_reduce_max": False,
            "use_reduce_mean": True,
        },
    }
    models_by_pipe["textcat_multilabel"] = {
        **models_by_pipe["textcat"],
        "exclusive_classes": False,
    }
    return {"model": {**models_by_pipe[pipe], "tok2vec": dict(listener)}}


def add_heads(nlp: Any, pipes: Sequence[str], listener: dict[str, Any] = LISTENER) -> None:
    """Add pipes that listen."""
    for pipe in pipes:
        nlp.add_pipe(pipe, config=head_config(pipe, listener))


def make_nlp(
    name: Path,
    pipes: Sequence[str] = (),
    *,
    listener: dict[str, Any] = LISTENER,
    initialize: bool = True,
    **settings: Any,
) -> Any:
    """Make a pipeline of an encoder and pipes that listen to it, initialized on examples.

    settings: settings of the encoder. Its device is the CPU by default.
    """
    settings.setdefault("device", "cpu")
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(name), **settings}
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": model})
    add_heads(nlp, pipes, listener)
    if initialize:
        initialize_nlp(nlp)
    return nlp


def initialize_nlp(nlp: Any) -> None:
    """Initialize, with weights of the heads that depend only on the pipe's name.

    spaCy's output layers start at zero and would pass no gradient in the first update.
    """
    nlp.initialize(lambda: make_examples(nlp))
    for name in nlp.pipe_names[1:]:
        model = nlp.get_pipe(name).model
        rng = np.random.default_rng(len(name))
        for node in model.walk():
            for parameter in node.param_names:
                if node.has_param(parameter):
                    shape = node.get_param(parameter).shape
                    weights = rng.normal(0, 0.3, shape).astype("f")
                    node.set_param(parameter, node.ops.asarray(weights))


def make_examples(
    nlp: Any, n: int = 16, *, start: int = 0, drop: Sequence[str] = ()
) -> list[Example]:
    """Make short docs with tags, morphology, entities and two classes.

    drop: annotations to leave out: "tags", "entities" or "cats".
    """
    people, places = ["Ann", "Bob", "Zoë"], ["Rome", "Oslo", "Zürich", "Tokyo"]
    examples = []
    for i in range(start, start + n):
        rng = random.Random(i)
        person, place = rng.choice(people), rng.choice(places)
        if i % 2:
            rows = [(person, "NNP", "U-PER"), ("visited", "VBD", "O"), (place, "NNP", "U-LOC")]
            rows += [("in", "IN", "O"), ("spring", "NN", "O"), (".", ".", "O")]
        else:
            rows = [("We", "PRP", "O"), ("like", "VBP", "O"), ("unbelievable", "JJ", "O")]
            rows += [("pizza", "NN", "O"), ("in", "IN", "O"), (place, "NNP", "U-LOC")]
        words, tags, entities = (list(column) for column in zip(*rows, strict=True))
        annotations: dict[str, Any] = {
            "tags": tags,
            "pos": ["PROPN" if tag == "NNP" else "X" for tag in tags],
            "morphs": ["Number=Sing" if tag.startswith("N") else "" for tag in tags],
            "entities": entities,
            "cats": {"travel": float(i % 2), "food": float(1 - i % 2)},
        }
        kept = {key: value for key, value in annotations.items() if key not in drop}
        examples.append(Example.from_dict(Doc(nlp.vocab, words=words), kept))
    return examples


def adam(learn_rate: float = 1e-3) -> Any:
    """Make an optimizer as in `[training.optimizer]`, but with a larger eps. With the usual one,
    the first steps are as large for rounding errors as for any other gradient.
    """
    return registry.optimizers.get("Adam.v1")(
        learn_rate, L2=0.01, L2_is_weight_decay=True, grad_clip=1.0, eps=1e-3
    )


def random_text(rng: random.Random, n_words: int) -> str:
    """Return words of SENTENCES in random order."""
    words = " ".join(SENTENCES).split()
    return " ".join(rng.choice(words) for _ in range(n_words))
