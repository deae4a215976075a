"""Students of a teacher's vectors: losses, gradients and a whole run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import srsly
from scipy.optimize import approx_fprime
from spacy.language import Language
from thinc.api import Config

from spacy_distil.cli.configs import pipeline_config
from spacy_distil.cli.teacher_pipes import read_teacher_pipes
from spacy_distil.distillation import distil_pipeline
from spacy_distil.distillation.pipeline.heads import PipeSettings
from spacy_distil.distillation.pipeline.heads.vectors import VectorsHead
from spacy_distil.hugging_face import load_classifier
from tests.hugging_face.models import write_modules
from tests.util import SENTENCES, random_text, write_encoder
from tests.vectors.conftest import ODD, build


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_encoder(tmp_path_factory.mktemp("sentences") / "model", "bert")
    return write_modules(path, "Transformer", "Pooling", "Normalize", pooling_mode_mean_tokens=True)


def make_head(student: Language, teacher: Language) -> VectorsHead:
    pipes: list[Any] = [nlp.get_pipe("vectors") for nlp in (student, teacher)]
    return VectorsHead(*pipes, PipeSettings(weight=0.5))


@pytest.mark.parametrize("dense", [[], [20]])
@pytest.mark.parametrize("dims", [[], [4]])
def test_losses_and_gradients(
    dense: list[int], dims: list[int], sentence_encoder: Path, bert_dir: Path
) -> None:
    """By loops over docs and pairs, for vectors as wide as the teacher's and others."""
    teacher = load_classifier(sentence_encoder, "en")
    model = {
        "@architectures": "spacy-distil.VectorsHead.v1",
        "dense": dense,
        "tok2vec": {"@architectures": "spacy-distil.Listener.v1", "docs": True},
    }
    student = build(bert_dir, model=model)
    student.get_pipe("vectors").cfg["dims"] = dims  # type: ignore[attr-defined]
    head = make_head(student, teacher)
    texts = [*SENTENCES[:3], *ODD[:2]]
    docs = list(teacher.pipe(texts))
    records = head.record(docs)["vector"]
    targets = np.concatenate(records)
    for doc, target in zip(docs, targets, strict=True):
        np.testing.assert_allclose(target, doc.vector, atol=1e-6)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(texts), 20 if dense else 32))

    def cosines(matrix: np.ndarray) -> np.ndarray:
        lengths = np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        return (matrix / lengths) @ (matrix / lengths).T

    def pairs(own: np.ndarray) -> float:
        difference = cosines(own) - cosines(targets)
        np.fill_diagonal(difference, 0)
        return float((difference**2).sum() / (len(own) - 1))

    def expected(flat: np.ndarray) -> float:
        own = flat.reshape(vectors.shape)
        total = pairs(own)
        if not dense:
            total = sum(
                1 - float(one @ other) / float(np.linalg.norm(one))
                for one, other in zip(own, targets, strict=True)
                if other.any()
            )
        return total + sum(pairs(own[:, :n]) for n in dims)

    loss, gradient = head._soft_loss(vectors, targets.astype(np.float64))
    assert loss == pytest.approx(expected(vectors.ravel()), rel=1e-5)
    numeric = approx_fprime(vectors.ravel(), expected, 1e-6)
    np.testing.assert_allclose(gradient.ravel(), numeric, atol=2e-4)


def test_a_run_on_text_alone(sentence_encoder: Path, tmp_path: Path) -> None:
    """The student comes nearer to its teacher's vectors, is scored by it, saved and loaded."""
    chance = random.Random(0)
    texts = [*SENTENCES, *(random_text(chance, 12) for _ in range(150)), *ODD]
    srsly.write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    teacher = load_classifier(sentence_encoder, "en")
    teacher.to_disk(tmp_path / "teacher")
    text = pipeline_config(teacher=read_teacher_pipes(str(tmp_path / "teacher")))
    config = Config().from_str(text, interpolate=False)
    config["paths"]["text"] = str(tmp_path / "texts.jsonl")
    config["training"] |= {"max_steps": 60, "eval_frequency": 20}
    config["training"]["batcher"]["size"] = 16
    config["distillation"]["student"]["n_layers"] = 1
    config["components"]["vectors"]["dims"] = [8]
    result = distil_pipeline(tmp_path / "teacher", config, tmp_path / "out")
    student = spacy.load(result.path)
    plain = spacy.load(tmp_path / "out" / "model-last")
    assert plain.pipe_names == ["transformer", "vectors"]
    held_out = [random_text(chance, 12) for _ in range(20)]
    near = [
        one.similarity(other)
        for one, other in zip(student.pipe(held_out), teacher.pipe(held_out), strict=True)
    ]
    assert np.mean(near) > 0.8
    assert result.score > 0.2  # a third of the weight is the agreement's
    config["distillation"]["student"]["n_layers"] = 1
    again = distil_pipeline(tmp_path / "teacher", config, tmp_path / "out", resume=True)
    assert again.score == result.score


def test_pairs_beside_the_teacher(sentence_encoder: Path, tmp_path: Path) -> None:
    """Training pairs give gold to the same pipe, and development pairs its scores."""
    pairs = [{"text": text, "other": text.lower()} for text in SENTENCES]
    srsly.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    load_classifier(sentence_encoder, "en").to_disk(tmp_path / "teacher")
    text = pipeline_config(teacher=read_teacher_pipes(str(tmp_path / "teacher")))
    config = Config().from_str(text, interpolate=False)
    config["paths"] |= {name: str(tmp_path / "pairs.jsonl") for name in ("train", "dev")}
    config["training"] |= {"max_steps": 20, "eval_frequency": 10}
    config["distillation"]["corpus"] = None
    config["distillation"]["student"]["n_layers"] = 1
    config["distillation"]["stages"] = {"soft": {"share": 1.0, "soft": 1.0, "gold": 1.0}}
    result = distil_pipeline(tmp_path / "teacher", config, tmp_path / "out")
    nlp = spacy.load(result.path)
    assert result.score > 0.2
    one, other = nlp(pairs[0]["text"]), nlp(pairs[0]["other"])
    assert one.similarity(other) > one.similarity(nlp(pairs[1]["text"]))
