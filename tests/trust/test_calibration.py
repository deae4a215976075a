"""`calibrate`: probabilities change, predictions do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.cli._util import app
from spacy.tokens import Doc, DocBin, Span
from spacy.util import fix_random_seed
from typer.testing import CliRunner

import spacy_distil
import spacy_distil.cli  # (registers the commands)
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.trust.calibration import calibrate
from tests.util import (
    LISTENER,
    adam,
    add_heads,
    initialize_nlp,
    make_examples,
    make_nlp,
)

PIPES = ["tagger", "morphologizer", "distil_ner", "textcat", "textcat_multilabel"]


@pytest.fixture(scope="module")
def pipeline(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that has learned a little, with wrong temperatures."""
    nlp = make_nlp(bert_dir, ["tagger", "morphologizer"], initialize=False)
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": dict(LISTENER)}
    nlp.add_pipe("distil_ner", config={"model": model})
    fix_random_seed(0)
    add_heads(nlp, ["textcat", "textcat_multilabel", "ner"])
    initialize_nlp(nlp)
    examples = make_examples(nlp, 32)
    for _ in range(5):
        nlp.update(examples, sgd=adam(0.005))
    path = tmp_path_factory.mktemp("pipeline") / "nlp"
    nlp.to_disk(path)
    return path


def write(path: Path, n: int, start: int = 0, drop: list[str] | None = None) -> Path:
    nlp = spacy.blank("en")
    docs = [each.reference for each in make_examples(nlp, n, start=start, drop=drop or [])]
    if not drop:  # in which nothing is annotated
        docs += [Doc(nlp.vocab, words=["Ann", "likes", "Rome"]), Doc(nlp.vocab)]
    DocBin(docs=docs).to_disk(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus") / "dev.spacy", 40, start=100)


def annotation(nlp: Any, doc: Doc) -> Any:
    tokens = [(t.tag_, t.pos_, str(t.morph), t.ent_iob_, t.ent_type_) for t in doc]
    # Both classifiers have the same labels, so the second one's are in doc.cats.
    best = int(cats_of(nlp, "textcat", doc).argmax())
    return tokens, best, (cats_of(nlp, "textcat_multilabel", doc) >= 0.5).tolist()


def cats_of(nlp: Any, name: str, doc: Doc) -> np.ndarray:
    return np.asarray(nlp.get_pipe(name).predict([doc])[0], dtype="d")


def test_predictions_stay(pipeline: Path, corpus: Path, tmp_path: Path) -> None:
    result = calibrate(pipeline, tmp_path / "out", corpus=corpus)
    assert [own.pipe for own in result.pipes] == PIPES
    assert [own.before.what for own in result.pipes] == [
        *("tokens", "tokens", "entities", "documents", "answers")
    ]
    before, after = spacy.load(pipeline), spacy.load(tmp_path / "out")
    texts = [example.text for example in make_examples(before, 60, start=300)]
    for old, new in zip(before.pipe(texts), after.pipe(texts), strict=True):
        assert annotation(before, old) == annotation(after, new)
    for own in result.pipes:
        assert own.after.log_loss.mean < own.before.log_loss.mean
        assert own.after.accuracy == own.before.accuracy
        assert own.after.n == own.before.n > 0
        assert after.meta["calibration"][own.pipe] == pytest.approx(own.temperatures)
    assert {*result.skipped} == {"ner"}
    # Another time there is nothing left to do, and the temperatures add up.
    again = calibrate(tmp_path / "out", tmp_path / "again", corpus=corpus)
    for own, first in zip(again.pipes, result.pipes, strict=True):
        # Far out the likelihood is flat.
        left = [t for t, old in zip(own.temperatures, first.temperatures, strict=True) if old < 10]
        np.testing.assert_allclose(left, 1, rtol=0.1)
        expected = pytest.approx(first.after.log_loss.mean, rel=1e-3)
        assert own.before.log_loss.mean == expected
        total = np.array(own.temperatures) * first.temperatures
        stored = spacy.load(tmp_path / "again").meta["calibration"][own.pipe]
        np.testing.assert_allclose(stored, total, rtol=1e-6)


def test_the_temperature_is_in_the_probabilities(
    pipeline: Path, corpus: Path, tmp_path: Path
) -> None:
    result = calibrate(pipeline, tmp_path / "out", corpus=corpus)
    by_name = {own.pipe: own.temperatures for own in result.pipes}
    before, after = spacy.load(pipeline), spacy.load(tmp_path / "out")
    text = "Ann visited Rome in spring ."
    old, new = before(text), after(text)
    (temperature,) = by_name["tagger"]
    logits = before.get_pipe("tagger").model.predict([old])[0] / temperature
    probs = np.exp(logits - logits.max(1, keepdims=True))
    expected = (probs / probs.sum(1, keepdims=True)).max(1)
    found = spacy_distil.confidence(after, new)["tagger"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    (temperature,) = by_name["textcat"]
    powers = cats_of(before, "textcat", old) ** (1 / temperature)
    np.testing.assert_allclose(cats_of(after, "textcat", new), powers / powers.sum(), rtol=1e-3)
    yes = cats_of(before, "textcat_multilabel", old)
    odds = (yes / (1 - yes)) ** (1 / np.array(by_name["textcat_multilabel"]))
    found = cats_of(after, "textcat_multilabel", new)
    np.testing.assert_allclose(found, odds / (1 + odds), rtol=1e-3)


def test_a_part_of_the_annotation(pipeline: Path, corpus: Path, tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.spacy", 10, drop=["cats", "entities"])
    result = calibrate(pipeline, tmp_path / "out", corpus=dev)
    assert [own.pipe for own in result.pipes] == ["tagger", "morphologizer"]
    assert result.skipped["textcat"] == "the documents have no annotation for it"
    assert any("60 annotated tokens alone" in warning for warning in result.warnings)
    with pytest.raises(CorpusError, match=r"dev\.spacy has no annotation for distil_ner, textcat"):
        calibrate(pipeline, tmp_path / "new", corpus=corpus, test=dev)
    assert not (tmp_path / "new").exists()
    other = write(tmp_path / "test.spacy", 10, start=500)
    tested = calibrate(pipeline, tmp_path / "new", corpus=corpus, test=other)
    fitted = calibrate(pipeline, tmp_path / "newer", corpus=corpus)
    assert [own.temperatures for own in tested.pipes] == [own.temperatures for own in fitted.pipes]
    assert tested.pipes[0].before != fitted.pipes[0].before


def test_nothing_to_calibrate(bert_dir: Path, corpus: Path, tmp_path: Path) -> None:
    make_nlp(bert_dir, ["ner"]).to_disk(tmp_path / "nlp")
    with pytest.raises(ConfigError, match=r"No pipe of .* can be calibrated\. ner: no temperature"):
        calibrate(tmp_path / "nlp", tmp_path / "out", corpus=corpus)
    with pytest.raises(ConfigError, match="is the pipeline itself"):
        calibrate(tmp_path / "nlp", tmp_path / "nlp", corpus=corpus)
    with pytest.raises(ConfigError, match="batch_size = 0: expected at least 1"):
        calibrate(tmp_path / "nlp", tmp_path / "out", corpus=corpus, batch_size=0)
    with pytest.raises(CorpusError, match=r"No documents at .*none\.spacy"):
        calibrate(tmp_path / "nlp", tmp_path / "out", corpus=tmp_path / "none.spacy")


def test_command(pipeline: Path, corpus: Path, tmp_path: Path) -> None:
    report, out = tmp_path / "report.json", tmp_path / "out"
    arguments = ["distil", "calibrate", str(pipeline), str(out), "--corpus", str(corpus)]
    arguments += ["--report", str(report)]
    page = ["--page", str(tmp_path / "pages" / "calibrate.html")]
    result = CliRunner().invoke(
        app, [*arguments, *page], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "adaptive ECE, %" in result.output
    html = (tmp_path / "pages" / "calibrate.html").read_text()
    assert html.count("<svg") == len(PIPES)
    assert "no temperature fits" in html
    assert "fitted on: add --test" in result.output
    assert "'ner' stays as it is: no temperature fits" in result.output
    assert [own["pipe"] for own in json.loads(report.read_text())["pipes"]] == PIPES
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "Choose another directory, or replace it with --force" in " ".join(result.output.split())
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0


@pytest.mark.slow
def test_it_stays_in_int8(pipeline: Path, corpus: Path, tmp_path: Path) -> None:
    from spacy_distil.export.quantize import quantize

    result = calibrate(pipeline, tmp_path / "out", corpus=corpus)
    quantize(tmp_path / "out", tmp_path / "int8", corpus=corpus, min_agreement=0.0)
    nlp = spacy.load(tmp_path / "int8")
    assert nlp.meta["calibration"]["tagger"] == pytest.approx(result.pipes[0].temperatures)
    again = calibrate(tmp_path / "int8", tmp_path / "again", corpus=corpus)
    np.testing.assert_allclose(again.pipes[0].temperatures, 1, rtol=0.2)


def rewritten(path: Path, corpus: Path, change: Any) -> Path:
    """A copy of a corpus whose documents have been changed."""
    docs = [change(doc) for doc in DocBin().from_disk(corpus).get_docs(spacy.blank("en").vocab)]
    DocBin(docs=docs).to_disk(path)
    return path


def test_tokens_of_others_do_not_count(pipeline: Path, corpus: Path, tmp_path: Path) -> None:
    """Of an annotation with longer tokens, the ones that are alike teach the same."""

    def merge(doc: Doc) -> Doc:
        with doc.retokenize() as retokenizer:
            if len(doc) > 4:
                retokenizer.merge(doc[1:3], attrs={"TAG": doc[1].tag_})
        return doc

    merged = rewritten(tmp_path / "merged.spacy", corpus, merge)
    result = calibrate(pipeline, tmp_path / "out", corpus=merged)
    whole = calibrate(pipeline, tmp_path / "whole", corpus=corpus)
    (tagger,) = (own for own in result.pipes if own.pipe == "tagger")
    assert tagger.before.n == whole.pipes[0].before.n - 2 * 40
    assert any(warning.startswith("80 of 240 tokens") for warning in result.warnings)


def test_labels_that_the_pipes_lack(pipeline: Path, corpus: Path, tmp_path: Path) -> None:
    def change(doc: Doc) -> Doc:
        if len(doc) > 4:
            doc[0].tag_ = "NEW"
            if doc[0].text == "We":
                doc.set_ents([Span(doc, 0, 1, "NEW")])
        return doc

    other = rewritten(tmp_path / "other.spacy", corpus, change)
    result = calibrate(pipeline, tmp_path / "out", corpus=other)
    assert [own.pipe for own in result.pipes] == PIPES
    assert any("for 'tagger' do not count" in warning for warning in result.warnings)
    assert any("for 'distil_ner' do not count" in warning for warning in result.warnings)
    found = spacy.load(tmp_path / "out")
    assert "NEW" not in found.get_pipe("distil_ner").labels


def test_a_temperature_at_the_end_of_the_search(
    pipeline: Path, corpus: Path, tmp_path: Path
) -> None:
    """Annotation that has nothing to do with the text: the pipe stays as it is."""
    rng = np.random.default_rng(0)

    def change(doc: Doc) -> Doc:
        for token in doc:
            token.tag_ = str(rng.choice(["NNP", "NN", "VBD", "IN", ".", "JJ", "PRP", "VBP"]))
        return doc

    other = rewritten(tmp_path / "other.spacy", corpus, change)
    nlp = spacy.load(pipeline)
    output = nlp.get_pipe("tagger").model.get_ref("softmax")
    output.set_param("W", output.get_param("W") * 1000)
    nlp.to_disk(tmp_path / "sure")
    result = calibrate(tmp_path / "sure", tmp_path / "out", corpus=other)
    assert result.pipes[0].temperatures == [1.0]
    assert any("'tagger' is beyond the range" in warning for warning in result.warnings)


def test_a_threshold_is_told(pipeline: Path, corpus: Path, tmp_path: Path) -> None:
    nlp = spacy.load(pipeline)
    nlp.get_pipe("distil_ner").cfg["threshold"] = 0.5
    nlp.to_disk(tmp_path / "nlp")
    result = calibrate(tmp_path / "nlp", tmp_path / "out", corpus=corpus)
    assert any("'distil_ner' has threshold = 0.5" in warning for warning in result.warnings)
