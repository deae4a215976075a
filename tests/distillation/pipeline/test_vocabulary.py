"""Students with a part of their encoder's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import DocBin
from thinc.api import Config

from spacy_distil import distil_pipeline
from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.config import load_config
from spacy_distil.distillation.pipeline.student import make_student, read_counted_texts
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import student_config, train_pipeline

PIPES = ("tagger", "textcat")


def texts_of(corpus: Path) -> list[str]:
    docs = DocBin().from_disk(corpus / "train.spacy").get_docs(spacy.blank("en").vocab)
    text = (corpus / "text.jsonl").read_text(encoding="utf8")
    return [*(doc.text for doc in docs), *(json.loads(line)["text"] for line in text.splitlines())]


def n_pieces(nlp: Language) -> int:
    return get_encoder(nlp.get_pipe("transformer").model).loaded.tokenizer.largest_id + 1


@pytest.mark.parametrize("start", ["teacher", "config"])
@pytest.mark.parametrize("pieces_from", ["text", "tokens"])
def test_the_documents_are_encoded_as_before(
    start: str, pieces_from: str, teacher: Language, bert_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    config = student_config(bert_dir, corpus, PIPES)
    config["distillation"]["student"] = {"start": start, "n_layers": 2}
    config["components"]["transformer"]["model"]["pieces_from"] = pieces_from
    # None if the config leaves it out.
    whole, _ = make_student(load_config(config), teacher, tmp_path / "whole", -1)
    config["distillation"]["student"]["vocabulary"] = {"min_count": 1}
    small, _ = make_student(load_config(config), teacher, tmp_path / "small", -1)
    assert n_pieces(small) < n_pieces(whole) - 10
    for text in texts_of(corpus):
        expected, found = (
            nlp.get_pipe("transformer")(nlp.make_doc(text)) for nlp in (whole, small)
        )
        np.testing.assert_allclose(found.tensor, expected.tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pieces_from", "kind"), [("text", str), ("tokens", list)])
def test_a_variable_says_what_the_encoder_reads(
    pieces_from: str, kind: type, teacher: Language, bert_dir: Path, corpus: Path
) -> None:
    config = student_config(bert_dir, corpus, PIPES)
    config["paths"]["pieces_from"] = pieces_from
    config["components"]["transformer"]["model"]["pieces_from"] = "${paths.pieces_from}"
    settings = load_config(config)
    texts = read_counted_texts(settings, settings.spacy, teacher, tokenizer=True)
    assert {type(text) for text in texts} == {kind}


def test_a_run(
    teacher: Language,
    bert_dir: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = student_config(bert_dir, corpus, PIPES)
    config["distillation"]["student"] = {"n_layers": 1}
    size = n_pieces(teacher) - 60
    overrides = {"distillation.student.vocabulary.size": size, "training.max_steps": 4}
    distilled = distil_pipeline(teacher, config, tmp_path / "out", overrides=overrides)
    nlp = spacy.load(distilled.path)
    assert n_pieces(nlp) == size
    assert f"vocabulary: {size} of {size + 60} pieces" in " ".join(capsys.readouterr().out.split())
    again = distil_pipeline(teacher, config, tmp_path / "out", overrides=overrides, resume=True)
    assert again == distilled
    overrides["distillation.student.vocabulary.size"] -= 1
    with pytest.raises(ConfigError, match=r"vocabulary\.size"):
        distil_pipeline(teacher, config, tmp_path / "out", overrides=overrides, resume=True)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_special_pieces_of_a_teachers_encoder(
    family: str, encoder_dirs: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    """They are called "<s>" in an encoder of BERT's form, too, as in some for many languages."""
    teacher = train_pipeline(encoder_dirs[family], PIPES, steps=1)
    before = get_encoder(teacher.get_pipe("transformer").model).loaded.tokenizer
    config = student_config(encoder_dirs[family], corpus, PIPES)
    config["distillation"]["student"] = {"n_layers": 1, "vocabulary": {"min_count": 1}}
    student, _ = make_student(load_config(config), teacher, tmp_path / "out", -1)
    after = get_encoder(student.get_pipe("transformer").model).loaded.tokenizer
    old, new = (
        {i: piece for piece, i in each.read_vocabulary().items()} for each in (before, after)
    )
    assert [new[i] for i in after.prefix] == [old[i] for i in before.prefix] == ["<s>"]
    assert [new[i] for i in after.suffix] == ["</s>"]
    assert new.items() != old.items()
    assert "[CLS]" not in new.values()


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (
            {"size": 0},
            r"student\.vocabulary\.size = 0: .* greater than or equal to 1",
        ),
        ({"sise": 9}, r"distillation\.student\.vocabulary\.sise = 9: Extra inputs"),
        ({"size": 300, "min_count": 2}, r"min_count = 2 and size = 300: expected one of them"),
        ({"size": 5}, r"size = 5: expected at least"),
    ],
)
def test_wrong_settings(
    vocabulary: dict[str, int],
    message: str,
    teacher: Language,
    bert_dir: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    config: Config = student_config(bert_dir, corpus, PIPES)
    config["distillation"]["student"] = {"vocabulary": vocabulary}
    with pytest.raises(ConfigError, match=message):
        make_student(load_config(config), teacher, tmp_path / "out", -1)
    assert not (tmp_path / "out" / "start").exists()
