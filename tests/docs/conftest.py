"""The files that a reader of the pages has."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import spacy
import srsly
import torch
import transformers
from safetensors.torch import load_file
from spacy.cli.init_config import init_config
from spacy.tokens import Doc, DocBin

from tests.hugging_face.models import write_model, write_modules
from tests.life.corpus import make_annotated
from tests.pairs.conftest import write_classifier
from tests.util import (
    adam,
    add_heads,
    build_tokenizer,
    make_examples,
    make_nlp,
    special_pieces,
    write_encoder,
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write encoders, corpora and trained pipelines under the names that the pages give them."""
    path = tmp_path_factory.mktemp("docs")
    for name in ("distilbert-base-uncased", "distilbert-base-german-cased"):
        write_encoder(path / name, "distilbert", positions=512)
    write_encoder(path / "xlm-roberta-base", "xlm-roberta", positions=512)
    write_bert(path / "bert-base-uncased", transformers.BertForMaskedLM)
    minilm = path / "sentence-transformers" / "all-MiniLM-L6-v2"
    write_bert(minilm, transformers.BertModel, heads=12, width=48, neurons=1536)
    write_modules(minilm, "Transformer", "Pooling", "Normalize", pooling_mode_mean_tokens=True)
    nlp: Any = spacy.blank("en")
    for name, n in (("train", 120), ("dev", 8), ("test", 8)):
        docs = [each.reference for each in make_annotated(nlp, n, start=1000 * n)]
        if name == "train":  # one doc is longer than a batch
            docs.append(Doc(nlp.vocab, words=[token.text for doc in docs for token in doc] * 2))
            docs[-1].cats = docs[0].cats
            assert len(docs[-1]) > 1200
        DocBin(docs=docs, store_user_data=True).to_disk(path / f"{name}.spacy")
    weights = load_file(path / "distilbert-base-uncased" / "model.safetensors")
    torch.save(weights, path / "pytorch_model.bin")
    texts = [each.text for each in docs]
    srsly.write_jsonl(path / "texts.jsonl", [{"text": text} for text in texts])
    (path / "texts").mkdir()
    (path / "texts" / "more.txt").write_text("\n\n".join(texts * 20), encoding="utf8")
    init_config(lang="en", pipeline=["tagger", "ner"]).to_disk(path / "my_cnn.cfg")
    (path / "training").mkdir()
    learn(make_nlp(path / "distilbert-base-uncased", ["tagger", "ner", "textcat"])).to_disk(
        path / "training" / "model-best"
    )
    shutil.copytree(path / "training" / "model-best", path / "my_teacher")
    labels = ["O", *(f"{tag}-{label}" for label in ("PER", "LOC") for tag in "BI")]
    classifier = write_model(path / "scratch", "bert", "TokenClassification", labels)
    classifier.rename(path / "my-classifier")
    relations = {0: "entailment", 1: "neutral", 2: "contradiction"}
    bert = path / "bert-base-uncased"
    write_classifier(
        path / "my-pair-classifier", bert, "SequenceClassification", id2label=relations
    )
    write_classifier(path / "my-qa-model", bert, "QuestionAnswering")
    if importlib.util.find_spec("spacy_transformers") is not None:
        make_trf(path / "distilbert-base-uncased").to_disk(path / "my-trf-pipeline")
    return path


def write_bert(
    directory: Path, kind: Any, *, heads: int = 4, width: int = 32, neurons: int = 64
) -> None:
    """Save a random BERT. kind: its class, with a masked-LM head or without."""
    tokenizer = build_tokenizer("bert")
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=6,
        num_attention_heads=heads,
        intermediate_size=neurons,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(directory)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special_pieces("bert")
    ).save_pretrained(directory)


def make_trf(encoder: Path) -> Any:
    nlp: Any = spacy.blank("en")
    tokenizer = {"use_fast": True, "model_input_names": ["input_ids", "attention_mask"]}
    model = {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": str(encoder),
        "get_spans": {"@span_getters": "spacy-transformers.doc_spans.v1"},
        "tokenizer_config": tokenizer,
    }
    nlp.add_pipe("transformer", config={"model": model})
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "pooling": {"@layers": "reduce_mean.v1"},
    }
    add_heads(nlp, ["tagger"], listener)
    nlp.initialize(lambda: make_examples(nlp))
    return learn(nlp)


def learn(nlp: Any) -> Any:
    """Train until the pipes predict different labels for different tokens."""
    examples, optimizer = make_examples(nlp), adam(5e-3)
    for _ in range(25):
        nlp.update(examples, sgd=optimizer)
    return nlp
