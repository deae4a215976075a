"""Students that read noisy text, and learn what the teacher says about the clean one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Config

import spacy_distil
from spacy_distil.distillation.pipeline import loop
from spacy_distil.distillation.pipeline.config import load_config
from spacy_distil.distillation.pipeline.corpus import TransferExample
from spacy_distil.distillation.pipeline.noise import NoiseSettings, with_noise
from spacy_distil.errors import ConfigError
from spacy_distil.text.docs import same_tokens
from tests.distillation.pipeline.test_run import same
from tests.distillation.pipeline.util import student_config

ALL = NoiseSettings(share=1.0, rate=1.0)


@pytest.fixture
def config(bert_dir: Path, corpus: Path) -> Config:
    config = student_config(bert_dir, corpus, ("tagger", "ner"))
    config["distillation"]["noise"] = {"share": 0.7, "rate": 0.5}
    return config


def words(doc: Doc) -> list[str]:
    return [token.text for token in doc]


def test_the_number_and_the_tokens_stay() -> None:
    doc = spacy.blank("en").make_doc("Several people visited Lisbon yesterday.")
    clean = TransferExample(7, Example(doc, same_tokens(doc, doc.vocab)))
    noisy = with_noise(clean, ALL, random.Random(0))
    assert noisy.number == 7
    assert len(noisy.predicted) == len(noisy.reference) == len(doc)
    assert words(noisy.predicted) == words(noisy.reference)
    changed = [a != b for a, b in zip(words(noisy.predicted), words(doc), strict=True)]
    assert changed == [True, True, True, True, True, False]
    assert words(clean.predicted) == words(doc)  # it is read again


def test_words_with_other_tokens_in_the_annotation_stay_clean() -> None:
    nlp = spacy.blank("en")
    predicted = nlp.make_doc("Someone cannot swim")
    assert words(predicted) == ["Someone", "can", "not", "swim"]
    reference = Doc(nlp.vocab, words=["Someone", "cannot", "swim"], tags=["NN", "MD", "VB"])
    for seed in range(5):
        clean = TransferExample(0, Example(predicted, reference))
        noisy = with_noise(clean, ALL, random.Random(seed))
        assert noisy.predicted.text.split() == noisy.reference.text.split()
        assert words(noisy.reference)[1] == "cannot"
        assert words(noisy.reference)[0] != "Someone"
        assert words(noisy.reference)[2] != "swim"
        assert noisy.example.get_aligned("TAG", as_string=True)[3] == "VB"


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 100), (1.0, 200)])
def test_share_of_documents(share: float, expected: int) -> None:
    doc = spacy.blank("en").make_doc("Several people visited Lisbon")
    example = TransferExample(0, Example(doc, same_tokens(doc, doc.vocab)))
    settings, rng = NoiseSettings(share=share, rate=1.0), random.Random(1)
    noisy = [with_noise(example, settings, rng) for _ in range(200)]
    changed = sum(each.predicted.text != doc.text for each in noisy)
    assert abs(changed - expected) <= 4 * 7.1 * (0 < share < 1)


def test_a_run_with_noise_differs_and_can_be_resumed(
    teacher: Language, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = config.copy()
    clean["distillation"]["noise"]["share"] = 0.0
    spacy_distil.distil_pipeline(teacher, clean, tmp_path / "clean")
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "whole")
    last = tmp_path / "whole" / "model-last"
    assert not same(tmp_path / "clean" / "model-last", last)

    class Killed(RuntimeError):
        pass

    take_step = loop.TrainingLoop._take_step

    def until_six(self: Any, step: int, epoch: int, batch: Any) -> None:
        if step == 6:
            raise Killed
        take_step(self, step, epoch, batch)

    monkeypatch.setattr(loop.TrainingLoop, "_take_step", until_six)
    with pytest.raises(Killed):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "killed")
    monkeypatch.undo()
    changed = {"distillation.noise.rate": 0.1}
    with pytest.raises(ConfigError, match=r"distillation\.noise\.rate"):
        spacy_distil.distil_pipeline(
            teacher, config, tmp_path / "killed", resume=True, overrides=changed
        )
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "killed", resume=True)
    assert same(tmp_path / "killed" / "model-last", last)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("kinds", ["keyboard", "typo"], "'typo' is no kind of noise. Kinds: keyboard"),
        ("kinds", ["spaces"], "'spaces' adds tokens"),
        ("kinds", [], "kinds"),
        ("share", 1.5, r"distillation\.noise\.share = 1\.5"),
        ("rate", -0.1, r"distillation\.noise\.rate = -0\.1"),
        ("level", 1, r"distillation\.noise\.level = 1: no such setting"),
    ],
)
def test_bad_settings(config: Config, setting: str, value: Any, message: str) -> None:
    config["distillation"]["noise"][setting] = value
    with pytest.raises(ConfigError, match=message):
        load_config(config)
