"""Teachers that are none of ours: spacy-transformers', and spaCy's own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from thinc.api import fix_random_seed

import spacy_distil
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.conftest import annotated_examples, pipe_config
from tests.distillation.pipeline.test_run import student_config, write_corpus
from tests.util import adam

PIPES = ("tagger", "ner", "textcat")
# Starts from an encoder of its own, and learns what the teacher predicts.
OVERRIDES: dict[str, Any] = {
    "training.max_steps": 150,
    "training.eval_frequency": 50,
    "training.optimizer.learn_rate.total_steps": 300,
    "training.optimizer.learn_rate.initial_rate": 0.005,
    "distillation.student.start": "auto",
    "distillation.stages.hidden.share": 0.0,
    "distillation.stages.soft.share": 1.0,
    "distillation.stages.gold.share": 0.0,
}


def trained(nlp: Language) -> Language:
    fix_random_seed(0)
    examples, optimizer = annotated_examples(nlp), adam(5e-3)
    nlp.initialize(lambda: examples)
    for _ in range(30):
        nlp.update(examples, sgd=optimizer)
    return nlp


def cnn_pipeline(bert_dir: Path) -> Language:
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": {"width": 32, "depth": 1, "embed_size": 300}})
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 32}
    for name in PIPES:
        config = pipe_config(name)
        config["model"]["tok2vec"] = listener
        nlp.add_pipe(name, config=config)
    return trained(nlp)


def trf_pipeline(bert_dir: Path) -> Language:
    pytest.importorskip("spacy_transformers", reason="spacy-transformers is not installed")
    nlp = spacy.blank("en")
    model = {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": str(bert_dir),
        "get_spans": {"@span_getters": "spacy-transformers.doc_spans.v1"},
        "tokenizer_config": {"use_fast": True},
    }
    nlp.add_pipe("transformer", config={"model": model})
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "pooling": {"@layers": "reduce_mean.v1"},
        "grad_factor": 1.0,
    }
    for name in PIPES:
        config = pipe_config(name)
        config["model"]["tok2vec"] = listener
        nlp.add_pipe(name, config=config)
    return trained(nlp)


@pytest.mark.parametrize("make", [cnn_pipeline, trf_pipeline])
def test_their_predictions_are_learned(make: Any, bert_dir: Path, tmp_path: Path) -> None:
    teacher = make(bert_dir)
    write_corpus(tmp_path, teacher)
    config = student_config(bert_dir, tmp_path, PIPES)
    taught = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", overrides=OVERRIDES)
    student = spacy.load(taught.path)
    assert student.get_pipe("ner").move_names == teacher.get_pipe("ner").move_names
    texts = [example.text for example in annotated_examples(teacher, 15, start=100)]
    same = [
        (one.tag_, one.ent_iob_, one.ent_type_) == (other.tag_, other.ent_iob_, other.ent_type_)
        for theirs, ours in zip(teacher.pipe(texts), student.pipe(texts), strict=True)
        for one, other in zip(theirs, ours, strict=True)
    ]
    assert np.mean(same) > 0.9


def test_their_hidden_states_want_a_conversion(bert_dir: Path, tmp_path: Path) -> None:
    teacher = cnn_pipeline(bert_dir)
    write_corpus(tmp_path, teacher)
    config = student_config(bert_dir, tmp_path, PIPES)
    with pytest.raises(ConfigError, match="spacy distil convert"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
