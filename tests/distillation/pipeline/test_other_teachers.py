"""Teachers without a `distil_transformer`: pipelines of spacy-transformers, and spaCy's own."""

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
from tests.distillation.pipeline.util import (
    annotated_examples,
    pipe_config,
    student_config,
    write_corpus,
)
from tests.util import adam

PIPES = ("tagger", "ner", "textcat")
# The student starts from an encoder of its own, and learns the teacher's predictions.
OVERRIDES: dict[str, Any] = {
    "training.max_steps": 60,
    "training.eval_frequency": 60,
    "training.optimizer.learn_rate.total_steps": 120,
    "training.optimizer.learn_rate.initial_rate": 0.005,
    "distillation.student.start": "auto",
    "distillation.stages.hidden.share": 0.0,
    "distillation.stages.soft.share": 1.0,
    "distillation.stages.gold.share": 0.0,
}


def cnn_pipeline(bert_dir: Path) -> Language:
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": {"width": 32, "depth": 1, "embed_size": 300}})
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 32}
    for name in PIPES:
        config = pipe_config(name)
        config["model"]["tok2vec"] = listener
        nlp.add_pipe(name, config=config)
    return nlp


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
    return nlp


@pytest.mark.slow
@pytest.mark.parametrize("make", [cnn_pipeline, trf_pipeline])
def test_their_predictions_are_learned(make: Any, bert_dir: Path, tmp_path: Path) -> None:
    fix_random_seed(0)
    teacher = make(bert_dir)
    examples, optimizer = annotated_examples(teacher), adam(5e-3)
    teacher.initialize(lambda: examples)
    for _ in range(30):
        teacher.update(examples, sgd=optimizer)
    write_corpus(tmp_path, teacher)
    config = student_config(bert_dir, tmp_path, PIPES)
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", overrides=OVERRIDES)
    student = spacy.load(distilled.path)
    assert student.get_pipe("ner").move_names == teacher.get_pipe("ner").move_names
    texts = [example.text for example in annotated_examples(teacher, 15, start=100)]
    same = [
        (one.tag_, one.ent_iob_, one.ent_type_) == (other.tag_, other.ent_iob_, other.ent_type_)
        for theirs, ours in zip(teacher.pipe(texts), student.pipe(texts), strict=True)
        for one, other in zip(theirs, ours, strict=True)
    ]
    assert np.mean(same) > 0.9


def test_a_rule_pipe_of_a_teacher_with_vectors(bert_dir: Path, tmp_path: Path) -> None:
    """spaCy leaves the keys of the vectors in a pipeline that sources the pipe."""
    teacher = cnn_pipeline(bert_dir)
    teacher.add_pipe("attribute_ruler")
    teacher.vocab.reset_vectors(width=4)
    for text in ("Ann", "Rome", "We"):
        teacher.vocab.set_vector(text, np.ones(4, dtype="f"))
    teacher.initialize(lambda: annotated_examples(teacher))
    teacher.to_disk(tmp_path / "teacher")
    write_corpus(tmp_path, teacher)
    config = student_config(bert_dir, tmp_path, PIPES)
    config["nlp"]["pipeline"] = [*config["nlp"]["pipeline"], "attribute_ruler"]
    config["components"]["attribute_ruler"] = {"source": str(tmp_path / "teacher")}
    distilled = spacy_distil.distil_pipeline(
        tmp_path / "teacher",
        config,
        tmp_path / "out",
        overrides={**OVERRIDES, "training.max_steps": 2, "training.eval_frequency": 2},
    )
    student = spacy.load(distilled.path)
    assert student.vocab.vectors.n_keys == 0
    assert student("Ann visited Rome.")[:2].as_doc().text == "Ann visited "


def test_their_hidden_states_need_a_conversion(bert_dir: Path, tmp_path: Path) -> None:
    teacher = cnn_pipeline(bert_dir)
    teacher.initialize(lambda: annotated_examples(teacher))
    write_corpus(tmp_path, teacher)
    config = student_config(bert_dir, tmp_path, PIPES)
    with pytest.raises(ConfigError, match="spacy distil convert"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
