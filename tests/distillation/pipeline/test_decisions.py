"""Teachers of any kind, from their decisions to a student that has learned them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
from thinc.api import Config

import spacy_distil
from tests.distillation.pipeline.deciders import deciders
from tests.distillation.pipeline.util import annotated_examples, build_pipeline, student_config

ODD = [
    "",
    "   ",
    "\n\n",
    "Nothing here .",
    "😀 👩‍👩‍👧",
    "e\u0301te\u0301",
    "安 去 了 罗马",
    "a\x01b",
    "x " * 300,
]
SCORES = {
    "ner": "ents_f",
    "distil_ner": "ents_f",
    "tagger": "tag_acc",
    "morphologizer": "pos_acc",
    "senter": "sents_f",
    "trainable_lemmatizer": "lemma_acc",
    "parser": "dep_uas",
    "textcat": "cats_score",
    "textcat_multilabel": "cats_score",
    "spancat": "spans_sc_f",
}


def write_texts(path: Path, n: int = 60) -> list[str]:
    texts = [example.text for example in annotated_examples(spacy.blank("en"), n, start=200)]
    texts += ODD
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf8")
    return texts


def text_config(bert_dir: Path, directory: Path, *pipes: str, steps: int = 40) -> Config:
    """A student that has text alone."""
    write_texts(directory / "text.jsonl")
    config = student_config(bert_dir, directory, [p for p in pipes if p != "spancat"])
    if "spancat" in pipes:
        nlp = build_pipeline(bert_dir, [])
        listener = {"@architectures": "spacy-distil.Listener.v1"}
        spancat = nlp.get_factory_meta("spancat").default_config or {}
        model: Any = {**Config(spancat).copy()["model"], "tok2vec": listener}
        config["components"]["spancat"] = {"factory": "spancat", "model": model}
        config["nlp"]["pipeline"].append("spancat")
    for name in ("train", "dev"):
        config["corpora"][name]["path"] = None
    config["training"] |= {
        "max_steps": steps,
        "eval_frequency": steps,
        "score_weights": {SCORES[pipe]: 1.0 / len(pipes) for pipe in pipes},
    }
    rate = {"warmup_steps": 2, "total_steps": 3 * steps, "initial_rate": 5e-3}
    config["training"]["optimizer"]["learn_rate"] |= rate
    config["distillation"] = {"corpus": "corpora.text", "held_out": 8}
    return config


@pytest.mark.parametrize(
    ("pipe", "teacher", "settings"),
    [
        ("ner", "tests_zero_shot", {}),
        ("distil_ner", "tests_zero_shot", {}),
        ("distil_ner", "tests_spans", {"spans_key": "sc", "threshold": 0.5}),
        ("spancat", "tests_spans", {"threshold": 0.5}),
        ("tagger", "tests_tokens", {"teacher": "tests_tokens"}),
        ("morphologizer", "tests_tokens", {"teacher": "tests_tokens"}),
        ("senter", "tests_tokens", {"teacher": "tests_tokens"}),
        ("trainable_lemmatizer", "tests_tokens", {"teacher": "tests_tokens"}),
        ("parser", "tests_parse", {}),
        ("textcat", "tests_cats", {}),
        ("textcat_multilabel", "tests_cats", {}),
        ("textcat", "tests_cats", {"target": "silver"}),
    ],
)
def test_text_alone_teaches_what_a_component_decides(
    bert_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pipe: str,
    teacher: str,
    settings: dict[str, Any],
) -> None:
    config = text_config(bert_dir, tmp_path, pipe)
    config["distillation"]["pipes"] = {pipe: settings}
    nlp = deciders(teacher)
    distilled = spacy_distil.distil_pipeline(nlp, config, tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    assert "Scores are agreement with the teacher, on 8 documents that are held out" in output
    assert distilled.score > 0.8, output
    student = spacy.load(distilled.path)
    assert "Nothing" not in student.vocab.strings
    docs = list(student.pipe(ODD))
    assert [doc.text for doc in docs] == ODD
