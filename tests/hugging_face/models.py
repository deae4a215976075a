"""Tiny models of transformers with heads, and text for them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from tests.util import random_text, write_encoder

# Families whose heads are known; ModernBERT's is refused.
FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
# Tokens without pieces, of many pieces, and of other scripts. The tokenizers know few of them.
ODD = (
    " \n\t",
    "Ann\n\nvisited  Rome ",
    "😀👩‍👩‍👧 e\u0301a\u0308o\u0323 ﬁ",
    "東京 と 北京 は 大きい 都市 です。",
    "\x00\x07\u200b",
    "a" * 30,
)


def write_model(
    directory: Path,
    family: str,
    kind: str,
    labels: Sequence[str],
    *,
    seed: int = 0,
    positions: int = 72,
    **settings: Any,
) -> Path:
    """Write a random model with a head, and its tokenizer.

    kind: end of the name of its class, such as "TokenClassification".
    settings: more of config.json.
    """
    stock = {"camembert": "xlm-roberta"}.get(family, family)
    encoder = write_encoder(directory / "encoder", stock, positions=positions, seed=seed)
    config = transformers.AutoConfig.from_pretrained(encoder)
    if family == "camembert":
        config = transformers.CamembertConfig(**config.to_dict())
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    for name, value in settings.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    path = directory / "model"
    model.save_pretrained(path)
    inputs = ["input_ids", "attention_mask"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, model_input_names=inputs)
    tokenizer.save_pretrained(path)
    return path


def long_text(n_words: int = 150) -> str:
    """Return a text of several windows."""
    return random_text(random.Random(0), n_words)


def write_modules(model: Path, *kinds: str, **modes: bool) -> Path:
    """Make a sentence encoder of an encoder's directory.

    kinds: of its modules. modes: of its pooling.
    """
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}" if i else ""}
        for i, kind in enumerate(kinds)
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 32, **modes}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return model


def write_dense(
    model: Path, folder: str, n_in: int, n_out: int, activation: str = "Tanh"
) -> tuple[np.ndarray, np.ndarray]:
    """Write the linear layer of a sentence encoder. RETURNS: its random weight and bias."""
    rng = np.random.default_rng(n_out)
    weight, bias = rng.normal(size=(n_out, n_in)).astype("f"), rng.normal(size=n_out).astype("f")
    (model / folder).mkdir()
    settings = {
        "in_features": n_in,
        "out_features": n_out,
        "bias": True,
        "activation_function": f"torch.nn.modules.activation.{activation}",
    }
    (model / folder / "config.json").write_text(json.dumps(settings))
    save_file({"linear.weight": weight, "linear.bias": bias}, model / folder / "model.safetensors")
    return weight, bias
