"""Classifiers that transformers has trained teach pipelines of spaCy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch
import transformers
from spacy.tokens import Doc
from thinc.api import Config
from typer.testing import CliRunner

import spacy_distil
from spacy_distil.cli import distil_cli
from spacy_distil.hugging_face import load_classifier
from tests.distillation.pipeline.util import annotated_examples, write_corpus
from tests.hugging_face.models import write_model
from tests.util import encoder_of, write_encoder

IOB2 = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TAGS = ["NNP", "VBD", ".", "PRP", "$", "CD", "IN"]
CLASSES = ["travel", "food"]


def docs() -> list[Doc]:
    return [example.reference for example in annotated_examples(spacy.blank("en"), 16)]


def token_targets(doc: Doc, offsets: list[tuple[int, int]], labels: list[str]) -> list[int]:
    """Label the first piece of each token."""
    targets = [-100] * len(offsets)
    for token in doc:
        names = [token.tag_, token.ent_iob_, f"{token.ent_iob_}-{token.ent_type_}"]
        name = next(each for each in names if each in labels)
        for i, (start, end) in enumerate(offsets):
            if start < end and start < token.idx + len(token) and end > token.idx:
                targets[i] = labels.index(name)
                break
    return targets


def train(model: Path, kind: str, labels: list[str], *, multi_label: bool = False) -> None:
    """Train a classifier as users of transformers do."""
    torch.manual_seed(0)
    classifier = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)
    classifier.train()
    for _ in range(40):
        for doc in docs():
            inputs = tokenizer(doc.text, return_tensors="pt", return_offsets_mapping=True)
            offsets = inputs.pop("offset_mapping")[0].tolist()
            if kind == "TokenClassification":
                targets = torch.tensor([token_targets(doc, offsets, labels)])
            else:
                scores = torch.tensor([[doc.cats[label] for label in labels]])
                targets = scores if multi_label else scores.argmax(dim=1)
            classifier(**inputs, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    classifier.save_pretrained(model)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make each teacher once."""
    made: dict[str, Path] = {}

    def make(pipe: str) -> Path:
        if pipe not in made:
            kind = "SequenceClassification" if "textcat" in pipe else "TokenClassification"
            labels = {"ner": IOB2, "tagger": TAGS}.get(pipe, CLASSES)
            multi_label = pipe == "textcat_multilabel"
            settings = {"problem_type": "multi_label_classification"} if multi_label else {}
            directory = tmp_path_factory.mktemp(pipe)
            made[pipe] = write_model(directory, "bert", kind, labels, **settings)
            train(made[pipe], kind, labels, multi_label=multi_label)
        return made[pipe]

    return make


def distil(
    teacher: Path,
    directory: Path,
    *,
    student: str | None = None,
    text: str | None = None,
    **overrides: Any,
) -> Any:
    """Write a config with `init-config`, and distil on it.

    student: factory of the pipe instead of the teacher's.
    text: a document without annotation instead of short ones.
    overrides: settings, with __ for the dots.
    """
    # Another tokenizer and another vocabulary than the teacher's.
    encoder = write_encoder(directory / "encoder", "roberta", seed=5)
    write_corpus(directory, spacy.blank("en"))
    if text is not None:
        (directory / "text.jsonl").write_text(json.dumps({"text": text}))
    path = directory / "student.cfg"
    arguments = ["--teacher", teacher, "--lang", "en", "--encoder", encoder]
    result = CliRunner().invoke(
        distil_cli, ["init-config", "pipeline", str(path), *map(str, arguments)]
    )
    assert result.exit_code == 0, result.output
    config = Config().from_disk(path, interpolate=False)
    if student is not None:
        from tests.distillation.pipeline.util import pipe_config

        config["components"]["ner"] = {"factory": student, **pipe_config(student)}
    settings = {
        "paths.train": str(directory / "train.spacy"),
        "paths.dev": str(directory / "dev.spacy"),
        "paths.text": str(directory / "text.jsonl"),
        "training.max_steps": 60,
        "training.eval_frequency": 30,
        "training.batcher.size": 100,
        "training.optimizer.learn_rate.initial_rate": 5e-3,
        "training.optimizer.learn_rate.warmup_steps": 5,
        "distillation.student.start": "config",
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    distilled = spacy_distil.distil_pipeline(
        str(teacher), config, directory / "out", overrides=settings
    )
    return spacy.load(distilled.path), distilled


def predictions(doc: Doc) -> list[Any]:
    if doc.cats:
        return [max(doc.cats, key=lambda label: doc.cats[label])]
    return [(token.tag_, token.ent_iob_, token.ent_type_) for token in doc]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipe", "student"),
    [
        ("ner", None),
        ("ner", "ner"),
        ("tagger", None),
        ("textcat", None),
        ("textcat_multilabel", None),
    ],
)
@pytest.mark.parametrize("start", ["config", "teacher"])
def test_its_predictions_are_learned(
    pipe: str, student: str | None, start: str, teachers: Any, tmp_path: Path
) -> None:
    model = teachers(pipe)
    nlp, distilled = distil(model, tmp_path, student=student, distillation__student__start=start)
    assert distilled.step > 0 or distilled.score > 0.8
    assert nlp.pipe_names == ["transformer", pipe]
    teacher = load_classifier(model, "en")
    texts = [example.text for example in annotated_examples(spacy.blank("en"), 20, start=100)]
    same = [
        one == other
        for text in texts
        for one, other in zip(predictions(teacher(text)), predictions(nlp(text)), strict=True)
    ]
    assert sum(same) / len(same) > 0.85
    # They are no constant.
    assert len({str(predictions(teacher(text))) for text in texts}) > 1


def test_its_first_layers_and_its_head(teachers: Any, tmp_path: Path) -> None:
    """A student with all layers that learns nothing is the teacher."""
    model = teachers("textcat")
    nlp, _ = distil(
        model,
        tmp_path,
        distillation__student__start="teacher",
        distillation__student__n_layers=2,
        training__max_steps=1,
        training__eval_frequency=1,
        training__optimizer__learn_rate__initial_rate=0.0,
    )
    teacher = load_classifier(model, "en")
    for text in ("Ann visited Rome.", " ".join(["We paid $20 in Oslo."] * 30)):
        assert nlp(text).cats == pytest.approx(teacher(text).cats, abs=1e-4)


@pytest.mark.slow
def test_long_documents_teach_in_windows(teachers: Any, tmp_path: Path) -> None:
    text = " ".join(["Ann visited New Rome.", "We paid $20 in Oslo."] * 15)
    model = teachers("ner")
    teacher = load_classifier(model, "en")
    doc = teacher(text)
    encoder = encoder_of(teacher)
    assert len(encoder._encode([doc]).windows) > 2
    assert len(doc.ents) > 30
    nlp, _ = distil(model, tmp_path, text=text)
    own = predictions(nlp(text))
    same = [one == other for one, other in zip(predictions(doc), own, strict=True)]
    assert sum(same) / len(same) > 0.85
    assert any(ent.start > 100 for ent in nlp(text).ents)


def test_an_encoder_teaches_no_pipe(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", "bert")
    result = CliRunner().invoke(
        distil_cli, ["init-config", "pipeline", "-", "--teacher", str(encoder), "--lang", "en"]
    )
    assert result.exit_code == 1
    assert "an encoder alone" in " ".join(result.output.split())


def test_a_teacher_needs_a_language(teachers: Any) -> None:
    arguments = ["init-config", "pipeline", "-", "--teacher", str(teachers("ner"))]
    result = CliRunner().invoke(distil_cli, arguments)
    assert result.exit_code == 1
    assert "--lang" in result.output


def test_the_scheme_of_the_labels(tmp_path: Path) -> None:
    """The student gets it if the labels tell."""
    for labels, scheme in ((IOB2, "BILUO"), (["O", "I-PER"], "IO"), (["O", "B-A", "I-B"], "IOB1")):
        model = write_model(tmp_path / scheme, "bert", "TokenClassification", labels)
        arguments = ["init-config", "pipeline", "-", "--teacher", str(model), "--lang", "de"]
        result = CliRunner().invoke(distil_cli, arguments)
        assert f'scheme = "{scheme}"' in result.output
        assert 'lang = "de"' in result.output
        assert 'pooling = "first"' in result.output
