"""A model that cannot be an encoder is refused at initialization, by name. Others work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from spacy_distil.engines.files import longest_window
from spacy_distil.engines.pretrained import load_encoder
from spacy_distil.engines.probe import check_outputs
from spacy_distil.errors import ConfigError
from tests.util import build_tokenizer, make_nlp, special_pieces

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SIZES, "vocab_size": 300, "intermediate_size": 64, "max_position_embeddings": 40}
ROBERTA = {**BERT, "max_position_embeddings": 42, "pad_token_id": 1}


def write(directory: Path, config: transformers.PretrainedConfig) -> str:
    """Write a random model with the tokenizer of a BERT."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(directory)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer("bert"), **special_pieces("bert")
    ).save_pretrained(directory)
    return str(directory)


def gpt2() -> Any:
    return transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=40)


def test_a_misfit_is_refused_when_a_pipeline_is_initialized(tmp_path: Path) -> None:
    """The config does not say that the model reads from left to right."""
    name = write(tmp_path, gpt2())
    assert not getattr(gpt2(), "is_decoder", False)
    message = (
        f"name = {name!r} is a 'gpt2' model, which cannot be an encoder here: it reads in one "
        "direction: the vector of a piece does not depend on the pieces that follow. "
        "distil_transformer takes encoders such as BERT, DistilBERT, RoBERTa"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_nlp(Path(name))


MISFITS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (
        lambda: transformers.LlamaConfig(**BERT, num_key_value_heads=4),
        "it reads in one direction",
    ),
    "convbert": (
        # Its convolutions reach into the padding.
        lambda: transformers.ConvBertConfig(**BERT, embedding_size=32),
        "the vectors of a text depend on the padding in its batch",
    ),
    "xmod": (
        lambda: transformers.XmodConfig(**ROBERTA),
        "it fails on a few pieces with ValueError: Input language unknown",
    ),
    "xlnet": (
        lambda: transformers.XLNetConfig(
            vocab_size=300, d_model=32, n_layer=2, n_head=4, d_inner=64
        ),
        "its config.json has no 'max_position_embeddings'",
    ),
}


@pytest.mark.parametrize("family", MISFITS)
def test_what_a_model_does_is_tried_out(tmp_path: Path, family: str) -> None:
    config, message = MISFITS[family]
    with pytest.raises(ConfigError, match=f"is a '{family}' model, .*: {re.escape(message)}"):
        load_encoder(write(tmp_path, config()))


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (lambda: transformers.T5Config(), "it has a decoder"),
    "bart": (lambda: transformers.BartConfig(), "it has a decoder"),
    "bert": (lambda: transformers.BertConfig(is_decoder=True), "it has a decoder"),
    "superpoint": (
        lambda: transformers.SuperPointConfig(),
        "transformers has no encoder of this kind",
    ),
    "wav2vec2": (lambda: transformers.Wav2Vec2Config(), "it takes 'input_values', not pieces"),
    "vit": (lambda: transformers.ViTConfig(), "it takes 'pixel_values', not pieces"),
    "fnet": (lambda: transformers.FNetConfig(), "it takes no attention_mask, so the vectors"),
    "canine": (lambda: transformers.CanineConfig(), "its config.json has no 'vocab_size'"),
}


@pytest.mark.parametrize("family", KINDS)
def test_a_kind_that_is_no_encoder_is_refused_before_its_weights_are_read(
    tmp_path: Path, family: str
) -> None:
    """The directory has no weights."""
    config, message = KINDS[family]
    config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"is a '{family}' model, .*: {re.escape(message)}"):
        load_encoder(str(tmp_path))


class Halving(transformers.BertModel):
    """An encoder with one hidden state for every two pieces."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        return SimpleNamespace(
            last_hidden_state=output.last_hidden_state[:, ::2],
            hidden_states=[states[:, ::2] for states in output.hidden_states],
        )


class OneLayerShort(transformers.BertModel):
    """Does not return the hidden states of one layer."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        return SimpleNamespace(
            last_hidden_state=output.last_hidden_state, hidden_states=output.hidden_states[1:]
        )


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (
            Halving,
            r"hidden states of \[\(3, 32\)\] in 2 layers for 5 pieces, expected \(5, 32\) in 2",
        ),
        (OneLayerShort, r"hidden states of \[\(5, 32\)\] in 1 layers .* expected \(5, 32\) in 2"),
    ],
)
def test_hidden_states_are_counted(model_class: Any, message: str) -> None:
    model = model_class(transformers.BertConfig(**BERT)).eval()
    with pytest.raises(ConfigError, match=message):
        check_outputs("own", model)


def test_hidden_states_that_are_not_finite_are_refused() -> None:
    model = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    check_outputs("own", model)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[3] = torch.nan
    with pytest.raises(ConfigError, match="its hidden states are not finite numbers"):
        check_outputs("own", model)


OTHERS: dict[str, Callable[[], Any]] = {
    "big_bird": lambda: transformers.BigBirdConfig(**BERT, block_size=4),
    "camembert": lambda: transformers.CamembertConfig(**ROBERTA),
    "data2vec-text": lambda: transformers.Data2VecTextConfig(**ROBERTA),
    "deberta": lambda: transformers.DebertaConfig(**BERT, relative_attention=True),
    "esm": lambda: transformers.EsmConfig(**ROBERTA, mask_token_id=4),
    "ibert": lambda: transformers.IBertConfig(**ROBERTA),
    "longformer": lambda: transformers.LongformerConfig(**ROBERTA, attention_window=8),
    "luke": lambda: transformers.LukeConfig(**ROBERTA, entity_vocab_size=5, entity_emb_size=8),
    "markuplm": lambda: transformers.MarkupLMConfig(**ROBERTA),
    "rembert": lambda: transformers.RemBertConfig(**BERT, input_embedding_size=16),
    "roberta-prelayernorm": lambda: transformers.RobertaPreLayerNormConfig(**ROBERTA),
    "roformer": lambda: transformers.RoFormerConfig(**BERT, embedding_size=32),
    "xlm": lambda: transformers.XLMConfig(
        vocab_size=300, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=40
    ),
    "xlm-roberta-xl": lambda: transformers.XLMRobertaXLConfig(**ROBERTA),
}


@pytest.mark.parametrize("family", OTHERS)
def test_families_that_work_though_nobody_named_them(tmp_path: Path, family: str) -> None:
    model = load_encoder(write(tmp_path, OTHERS[family]()))
    assert model.config.model_type == family
    longest = longest_window(model.config.to_dict())
    assert longest == 40
    with torch.no_grad():
        hidden = model(input_ids=torch.full((1, longest), 9)).last_hidden_state
        assert hidden.shape == (1, longest, 32)
        # One more finds no position.
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 9))


def test_a_family_of_no_own_in_a_pipeline(tmp_path: Path) -> None:
    """BigBird is one. It would drop its sparse attention for good at the first short batch."""
    name = write(tmp_path, OTHERS["big_bird"]())
    nlp = make_nlp(Path(name), ["tagger"], overlap=4)
    texts = ["we like the pizza " * 12, "Oslo", ""]
    together = list(nlp.pipe(texts))
    assert nlp.get_pipe("transformer").model.shims[0].engine.model.attention_type == "original_full"
    for doc, text in zip(together, texts, strict=True):
        torch.testing.assert_close(doc.tensor, nlp(text).tensor, rtol=0, atol=1e-5)
