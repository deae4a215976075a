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
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from spacy_distil.shim import EncoderShim, get_encoder

# Types that spaCy's stubs do not know.
registry: Any = spacy.registry

FAMILIES = ("bert", "distilbert", "electra", "roberta")
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
    """A fast tokenizer for SENTENCES: byte-level BPE for RoBERTa, else WordPiece.

    Its pieces are single characters (bytes) and some beginnings of words. It is written out and
    not trained, because the trainers break ties at random.
    """
    if family == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        vocab = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
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
        ends = [(piece, vocab.index(piece)) for piece in ("</s>", "<s>")]
        tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        words = [
            word
            for sentence in (*SENTENCES, string.printable)
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
                tokenizer.normalizer.normalize_str(sentence)
            )
        ]
        characters = sorted({character for word in words for character in word})
        beginnings = [word[:end] for word in words for end in (2, 3, 4)]
        vocab = [*special, *characters, *(f"##{character}" for character in characters)]
        vocab = list(dict.fromkeys([*vocab, *beginnings, "##ing", "##able", "##er"]))
        tokenizer.model = models.WordPiece(_numbered(vocab), unk_token="[UNK]")
        ends = [(piece, vocab.index(piece)) for piece in ("[SEP]", "[CLS]")]
        tokenizer.post_processor = processors.BertProcessing(*ends)
    tokenizer.add_special_tokens(special)
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
    common = {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.1}
    bert = {
        "hidden_size": width,
        "hidden_act": activation,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    config: Any
    if family == "bert":
        config = transformers.BertConfig(**common, **bert, max_position_embeddings=positions)
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    elif family == "electra":
        # Embeddings of another width than the layers', as in the small models of this family.
        config = transformers.ElectraConfig(
            **common, **bert, embedding_size=width // 2, max_position_embeddings=positions
        )
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    elif family == "roberta":
        config = transformers.RobertaConfig(
            **common,
            **bert,
            max_position_embeddings=positions + 2,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            type_vocab_size=1,
        )
        special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    else:
        config = transformers.DistilBertConfig(
            **common,
            dim=width,
            activation=activation,
            n_layers=layers,
            n_heads=4,
            hidden_dim=2 * width,
            dropout=dropout,
            attention_dropout=dropout,
            max_position_embeddings=positions,
        )
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
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


def encoder_of(nlp: Any) -> EncoderShim:
    """The encoder of a pipeline's component "transformer"."""
    return get_encoder(nlp.get_pipe("transformer").model)


def torch_model_of(nlp: Any) -> torch.nn.Module:
    """The torch module of a pipeline's component "transformer"."""
    engine: Any = encoder_of(nlp).engine
    return engine.model


def weights_of(nlp: Any) -> dict[str, np.ndarray]:
    """The encoder's weights, copied."""
    return copied(torch_model_of(nlp))


def copied(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The weights of a module, copied."""
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray], atol: float = 1e-6) -> bool:
    """Whether two sets of weights are equal."""
    assert left.keys() == right.keys()
    return all(np.allclose(left[name], right[name], rtol=0, atol=atol) for name in left)


# Pipelines


def head_config(pipe: str, listener: dict[str, Any]) -> dict[str, Any]:
    """The model of a pipe that listens."""
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
    """A pipeline of an encoder and pipes that listen to it, initialized on EXAMPLES."""
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(name), **settings}
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": model})
    add_heads(nlp, pipes, listener)
    if initialize:
        initialize_nlp(nlp)
    return nlp


def initialize_nlp(nlp: Any) -> None:
    """Initialize, with weights of the heads that depend on the pipe's name alone.

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
                    node.set_param(parameter, rng.normal(0, 0.3, shape).astype("f"))


def make_examples(
    nlp: Any, n: int = 16, *, start: int = 0, drop: Sequence[str] = ()
) -> list[Example]:
    """Short docs with tags, morphology, entities and two classes.

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
    """An optimizer as `[training.optimizer]` has it, but for eps: with the usual one, the first
    steps are as large for a gradient that is nothing but rounding errors as for any other.
    """
    return registry.optimizers.get("Adam.v1")(
        learn_rate, L2=0.01, L2_is_weight_decay=True, grad_clip=1.0, eps=1e-3
    )


def random_text(rng: random.Random, n_words: int) -> str:
    """Words of SENTENCES in random order."""
    words = " ".join(SENTENCES).split()
    return " ".join(rng.choice(words) for _ in range(n_words))
