"""Scores under noise: of the same texts, with intervals, against a naive loop."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import spacy
from spacy.cli._util import app
from spacy.tokens import DocBin
from spacy.training import Example
from spacy.util import fix_random_seed
from typer.testing import CliRunner

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.errors import ConfigError
from spacy_distil.noise import KINDS, add_noise
from spacy_distil.trust.robustness import measure_robustness
from spacy_distil.trust.robustness_page import make_tables, to_markdown
from tests.report.stock_pipelines import BAG_OF_WORDS
from tests.util import adam, add_heads, initialize_nlp, make_examples, make_nlp


@pytest.fixture(scope="module")
def pipeline(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fix_random_seed(0)
    nlp = make_nlp(bert_dir, ["tagger"], initialize=False)
    add_heads(nlp, ["textcat"])
    initialize_nlp(nlp)
    for _ in range(8):
        nlp.update(make_examples(nlp, 32), sgd=adam(0.01))
    path = tmp_path_factory.mktemp("pipeline") / "nlp"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "test.spacy"
    docs = [each.reference for each in make_examples(spacy.blank("en"), 120, start=40)]
    docs = [doc for doc in docs if doc.text.isascii()][:20]
    assert len(docs) == 20
    DocBin(docs=docs).to_disk(path)
    return path


def test_scores_are_those_of_a_naive_loop(pipeline: Path, test_set: Path) -> None:
    result = measure_robustness({"a": pipeline}, test_set, kinds=["drop", "upper"], rates=[0.5])
    nlp = spacy.load(pipeline)
    docs = list(DocBin().from_disk(test_set).get_docs(nlp.vocab))
    (row,) = result.rows
    found = {each.noise.kind: each for each in row.noisy}
    assert set(found) == {"drop", "upper"}
    clean = nlp.evaluate([Example(nlp.make_doc(doc.text), doc) for doc in docs])["tag_acc"]
    assert row.clean["tag_acc"].mean == pytest.approx(clean)
    for kind, rate in (("drop", 0.5), ("upper", 1.0)):
        examples = []
        for i, doc in enumerate(docs):
            noisy = add_noise(doc, kind, rate, Random(f"0 {kind} {rate} {i}"))
            examples.append(Example(nlp(noisy.text), noisy))
        expected = nlp.evaluate(examples)["tag_acc"]
        assert found[kind].scores["tag_acc"].mean == pytest.approx(expected)
        drop, interval = found[kind].drops["tag_acc"]
        assert drop == pytest.approx(clean - expected)
        assert interval is not None
        assert interval[0] <= drop <= interval[1]


def test_all_pipelines_read_the_same_texts(pipeline: Path, test_set: Path) -> None:
    result = measure_robustness(
        {"a": pipeline, "b": pipeline}, test_set, kinds=["keyboard"], rates=[0.3, 0.1]
    )
    one, two = result.rows
    assert one.noisy == two.noisy
    assert [each.noise.rate for each in one.noisy] == [0.1, 0.3]
    other = measure_robustness({"a": pipeline}, test_set, kinds=["keyboard"], rates=[0.3], seed=1)
    assert other.rows[0].noisy[0].noise.changed != one.noisy[1].noise.changed


def test_one_keyboard_for_pipelines_of_several_languages(
    pipeline: Path, test_set: Path, tmp_path: Path
) -> None:
    nlp = spacy.blank("el")
    nlp.add_pipe(
        "textcat",
        config={
            "model": {
                "@architectures": "spacy.TextCatBOW.v3",
                "exclusive_classes": True,
                "no_output_layer": False,
                **BAG_OF_WORDS,
            }
        },
    )
    nlp.initialize(lambda: make_examples(nlp, 8))
    nlp.to_disk(tmp_path / "el")
    kinds = ["keyboard", "swap", "upper"]
    result = measure_robustness(
        {"el": tmp_path / "el", "en": pipeline}, test_set, kinds=kinds, rates=[0.3, 0.3]
    )
    # English words have no letter of a Greek keyboard.
    assert result.unchanged == ["keyboard"]
    for row in result.rows:
        assert [each.noise.kind for each in row.noisy] == ["swap", "upper"]
    turned = measure_robustness(
        {"en": pipeline, "el": tmp_path / "el"}, test_set, kinds=kinds, rates=[0.3]
    )
    changed = [[each.noise for each in row.noisy] for row in turned.rows]
    assert changed[0] == changed[1]
    (textcat,) = (t for t in make_tables(turned) if t.title == "textcat macro-F")
    assert [row[0] for row in textcat.rows] == ["none", *kinds]
    for i, each in enumerate(turned.rows[1].noisy, start=1):
        assert textcat.rows[i][4].startswith(f"{100 * each.scores['cats_macro_f'].mean:.1f} (")


def test_chance_may_leave_all_words_alone(pipeline: Path, test_set: Path) -> None:
    result = measure_robustness(
        {"a": pipeline}, test_set, kinds=["swap"], rates=[0.001, 0.0012], limit=1
    )
    assert result.unchanged == []
    assert [each.noise.changed for each in result.rows[0].noisy] == [0.0, 0.0]
    rows = make_tables(result)[0].rows
    assert [row[1] for row in rows[1:]] == ["0.1%", "0.12%"]


def test_categories_without_documents_are_told(
    pipeline: Path, test_set: Path, tmp_path: Path
) -> None:
    vocab = spacy.blank("en").vocab
    docs = [*DocBin().from_disk(test_set).get_docs(vocab)]
    (best, *_) = (max(doc.cats, key=doc.cats.__getitem__) for doc in docs)
    kept = [doc for doc in docs if doc.cats[best] == 1]
    DocBin(docs=kept).to_disk(tmp_path / "one.spacy")
    result = measure_robustness({"a": pipeline}, tmp_path / "one.spacy", kinds=["upper"])
    n_labels = len(docs[0].cats)
    told = f"No test document has {n_labels - 1} of the {n_labels} categories of a."
    assert any(line.startswith(told) for line in result.verdicts)


def test_noise_that_changes_nothing_is_named(pipeline: Path, test_set: Path) -> None:
    result = measure_robustness({"a": pipeline}, test_set, kinds=["accents", "upper"])
    assert result.unchanged == ["accents"]
    assert [each.noise.kind for each in result.rows[0].noisy] == ["upper"]
    assert "No word of this test set can have this noise: accents" in to_markdown(result)
    assert all(row[0] != "accents" for table in make_tables(result) for row in table.rows)


def test_command(pipeline: Path, test_set: Path, tmp_path: Path) -> None:
    arguments = ["distil", "robustness", f"one={pipeline}", f"two={pipeline}", str(test_set)]
    arguments += ["--output", str(tmp_path / "out"), "--rates", "0.2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "XPOS acc" in result.stdout
    report = json.loads((tmp_path / "out" / "robustness.json").read_text())
    kinds = {each["noise"]["kind"] for each in report["rows"][1]["noisy"]}
    assert kinds == {*KINDS} - {"accents"}
    assert (tmp_path / "out" / "robustness.md").read_text().count("| keyboard | 20% |") == 2
    assert (tmp_path / "out" / "robustness.png").stat().st_size > 1000
    page = (tmp_path / "out" / "robustness.html").read_text()
    assert page.count("<svg") == 2
    assert "A test set of 20 documents tells little" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ["typo"]}, "'typo' is no kind of noise. Kinds: keyboard"),
        ({"kinds": []}, "Nothing to measure"),
        ({"rates": [0.0]}, "rate = 0.0: expected a share above 0"),
        ({"rates": [1.5]}, "rate = 1.5"),
        ({"limit": -1}, "limit = -1"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_bad_settings(settings: dict, message: str, pipeline: Path, test_set: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_robustness({"a": pipeline}, test_set, **settings)
    with pytest.raises(ConfigError, match="No pipelines"):
        measure_robustness({}, test_set)


def test_bad_rates_on_the_command_line(pipeline: Path, test_set: Path) -> None:
    arguments = ["distil", "robustness", str(pipeline), str(test_set), "--rates", "few"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "--rates few: expected shares" in result.output
