"""Development documents that can, or cannot, tell a good student from a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
from confection import Config
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example

import spacy_distil
from spacy_distil.distillation.pipeline.evaluation import check_development
from spacy_distil.errors import ConfigError, CorpusError
from tests.distillation.pipeline.util import annotated_examples, student_config, write_corpus

LABELS = {"textcat": ("travel", "food"), "textcat_multilabel": ("travel", "food")}
# The score of each kind of pipe that its annotation makes possible.
SCORES = {
    "tagger": "tag_acc",
    "morphologizer": "morph_acc",
    "trainable_lemmatizer": "lemma_acc",
    "senter": "sents_f",
    "parser": "dep_las",
    "ner": "ents_f",
    "distil_ner": "ents_f",
    "textcat": "cats_score",
    "textcat_multilabel": "cats_score",
    "spancat": "spans_sc_f",
}


def pipeline(*pipes: str) -> Language:
    nlp = spacy.blank("en")
    for pipe in pipes:
        added: Any = nlp.add_pipe(pipe)
        for label in LABELS.get(pipe, ()):
            added.add_label(label)
    return nlp


def annotated(nlp: Language) -> list[Example]:
    examples = annotated_examples(nlp)
    for example in examples:
        example.reference.spans["sc"] = list(example.reference.ents)
    return examples


def bare(nlp: Language) -> list[Example]:
    return [Example(nlp.make_doc(eg.text), nlp.make_doc(eg.text)) for eg in annotated_examples(nlp)]


@pytest.mark.parametrize("pipe", SCORES)
def test_each_kind_of_pipe_needs_its_annotation(
    pipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nlp, score = pipeline(pipe), SCORES[pipe]
    check_development(nlp, annotated(nlp), {score: 1.0})
    assert capsys.readouterr().out == ""
    with pytest.raises(CorpusError, match=rf"no annotation that .*score_weights\]: {score}\."):
        check_development(nlp, bare(nlp), {score: 1.0})
    assert f"no annotation for {pipe}: {score} will be 0" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_pipe_that_is_not_scored_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    nlp = pipeline("tagger", "ner")
    examples = annotated_examples(nlp)
    for example in examples:
        example.reference.ents = []  # annotated, but without a single entity
    check_development(nlp, examples, {"tag_acc": 0.5, "ents_f": 0.5, "cats_score": 0.0})
    output = " ".join(capsys.readouterr().out.split())
    assert "no annotation for ner: ents_f will be 0 for any student" in output
    assert "tagger" not in output
    check_development(nlp, examples, {"tag_acc": 0.5, "ents_f": 0.0, "ents_p": None})
    assert capsys.readouterr().out == ""


def test_another_pipe_may_give_the_same_score(capsys: pytest.CaptureFixture[str]) -> None:
    """And one that is annotated may be enough. The tagger scores parts of speech as well."""
    nlp = pipeline("morphologizer", "attribute_ruler")
    check_development(nlp, annotated_examples(nlp), {"pos_acc": 1.0})
    assert capsys.readouterr().out == ""


def test_weights_that_choose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    nlp = pipeline("tagger")
    examples = annotated_examples(nlp)
    with pytest.raises(CorpusError, match="none has a weight above 0"):
        check_development(nlp, examples, {"tag_acc": 0.0})
    with pytest.raises(CorpusError, match="tag_ac"):
        check_development(nlp, examples, {"tag_ac": 1.0})
    assert "No pipe has these of the [training.score_weights]: tag_ac" in " ".join(
        capsys.readouterr().out.split()
    )
    check_development(nlp, bare(nlp), {"token_f": 1.0})  # tokens need no annotation
    with pytest.raises(CorpusError, match="documents that the teacher has annotated"):
        check_development(nlp, bare(nlp), {"tag_acc": 1.0})


def test_the_speed_is_a_score_of_no_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    nlp = pipeline("tagger")
    check_development(nlp, annotated_examples(nlp), {"tag_acc": 0.9, "speed": 0.1})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_scores_that_are_no_numbers_have_no_weight(weight: float) -> None:
    nlp = pipeline("ner")
    weights = {"ents_f": 0.5, "ents_per_type": weight}
    message = rf"ents_per_type = {weight}: .* ner is a dict.* to null.*: ents_f, ents_p, ents_r"
    with pytest.raises(ConfigError, match=message):
        check_development(nlp, annotated_examples(nlp), weights)
    check_development(nlp, annotated_examples(nlp), {"ents_f": 0.5, "ents_per_type": None})


# In a run


@pytest.fixture
def config(bert_dir: Path, tmp_path: Path) -> Config:
    write_corpus(tmp_path, spacy.blank("en"))
    settings = student_config(bert_dir, tmp_path, ("tagger",))
    settings["training"] |= {"max_steps": 4, "score_weights": {"tag_acc": 1.0}}
    settings["distillation"]["stages"] = {}
    return settings


def strip(path: Path) -> None:
    """Remove all annotation from a .spacy file."""
    vocab = spacy.blank("en").vocab
    docs = DocBin().from_disk(path).get_docs(vocab)
    DocBin(docs=[Doc(vocab, words=[t.text for t in doc]) for doc in docs]).to_disk(path)


def test_a_run_is_refused_before_it_begins(
    teacher: Language, config: Config, tmp_path: Path
) -> None:
    strip(tmp_path / "dev.spacy")
    with pytest.raises(CorpusError, match=r"\[paths\] dev"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    assert not (tmp_path / "out" / "cache").exists()


def test_a_training_corpus_without_documents(
    teacher: Language, config: Config, tmp_path: Path
) -> None:
    DocBin().to_disk(tmp_path / "train.spacy")
    with pytest.raises(CorpusError, match=r"training corpus has no documents .*\[paths\] train"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")


def test_training_documents_need_no_annotation_that_the_teacher_has(
    teacher: Language, config: Config, tmp_path: Path
) -> None:
    strip(tmp_path / "train.spacy")
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    assert spacy.load(distilled.path)("Ann visited Rome.")[0].tag_


@pytest.mark.parametrize(
    "pipe",
    ["morphologizer", "trainable_lemmatizer", "senter", "parser", "ner", "distil_ner", "textcat"],
)
def test_a_pipe_that_neither_teacher_nor_annotation_can_teach(
    pipe: str, bert_dir: Path, tmp_path: Path
) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    nlp.initialize(lambda: annotated_examples(nlp))
    write_corpus(tmp_path, nlp)
    config = student_config(bert_dir, tmp_path, ("tagger", pipe))
    config["training"]["score_weights"] = {"tag_acc": 1.0}
    config["distillation"]["stages"] = {}
    strip(tmp_path / "train.spacy")
    with pytest.raises(ConfigError, match=f"nothing to learn.\n'{pipe}': the teacher has no pipe"):
        spacy_distil.distil_pipeline(nlp, config, tmp_path / "out")


def test_what_spacy_refuses_to_initialize_is_named(
    teacher: Language, config: Config, tmp_path: Path
) -> None:
    config["components"]["spancat"] = {"factory": "spancat"}
    config["nlp"]["pipeline"] = ["transformer", "tagger", "spancat"]
    with pytest.raises(ConfigError, match=r"cannot be initialized: \[E\d+\]"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")


def test_a_teacher_that_is_misspelt_is_told_before_missing_annotation(
    teacher: Language, config: Config, tmp_path: Path
) -> None:
    strip(tmp_path / "train.spacy")
    config["distillation"]["pipes"] = {"tagger": {"teacher": "tager"}}
    with pytest.raises(ConfigError, match="teacher = 'tager': the teacher has no such pipe"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    config["distillation"]["pipes"] = {"tager": {"weight": 2.0}}
    with pytest.raises(ConfigError, match=r"pipes\.tager\]: the student has no such pipe"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")


# The end


def test_teaching_that_only_made_it_worse_is_told(
    teacher: Language, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The student starts as the teacher. The rate is 0 in the first step.
    config["training"]["optimizer"]["learn_rate"] |= {"warmup_steps": 4, "initial_rate": 2.0}
    config["distillation"]["student"] = {"n_layers": 2}
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    assert (distilled.step, distilled.steps) == (0, 4)
    assert json.loads((tmp_path / "out" / "distil.json").read_text())["improved"] is False
    output = " ".join(capsys.readouterr().out.split())
    assert "best student is the one of step 0: teaching only made it worse" in output


def test_steps_that_nobody_evaluated_are_told(
    teacher: Language, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["training"]["eval_frequency"] = 200
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    assert "none of the 4 steps after it was evaluated" in output


def test_a_gain_is_no_reason_to_warn(
    teacher: Language, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["distillation"]["student"] = {"start": "config"}
    config["training"]["optimizer"]["learn_rate"] = 0.005
    config["training"]["max_steps"] = 12
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    assert distilled.step > 0
    assert json.loads((tmp_path / "out" / "distil.json").read_text())["improved"] is True
    assert "step 0" not in capsys.readouterr().out
