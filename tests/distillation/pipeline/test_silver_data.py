"""Silver data in files: what `spacy train` reads of what a pipeline has annotated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.distillation.pipeline.silver_data import annotate_texts
from spacy_distil.errors import ConfigError, CorpusError, TeacherError
from tests.distillation.pipeline import deciders as stand_ins
from tests.distillation.pipeline.deciders import Service, asked, deciders
from tests.distillation.pipeline.test_decisions import ODD, write_texts

ALL = ("tests_zero_shot", "tests_spans", "tests_tokens", "tests_cats")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts.jsonl", 14)
    return tmp_path / "texts.jsonl"


@pytest.fixture(autouse=True)
def calls(tmp_path: Path) -> None:
    Service.calls = tmp_path / "calls.txt"
    Service.calls.touch()


def read(path: Path) -> list[Doc]:
    """The documents, as `spacy train` reads them."""
    nlp = spacy.blank("en")
    return [example.reference for example in Corpus(path, shuffle=False)(nlp)]


def annotation(doc: Doc) -> Any:
    """Everything on a doc that a pipe could learn, in spaCy's own words."""
    return (
        [(t.text, t.whitespace_, t.tag_, t.pos_, str(t.morph), t.lemma_, t.dep_) for t in doc],
        [(t.head.i, t.is_sent_start, t.ent_iob_, t.ent_type_) for t in doc],
        {key: [(s.start, s.end, s.label_) for s in group] for key, group in doc.spans.items()},
    )


def expected(nlp: Language, path: Path) -> list[Any]:
    given = [json.loads(line)["text"] for line in path.read_text(encoding="utf8").splitlines()]
    return [annotation(nlp(text)) for text in given if text.strip()]


def test_the_file_has_the_pipelines_annotation(texts: Path, tmp_path: Path) -> None:
    nlp = deciders(*ALL)
    silver = annotate_texts(nlp, [texts], tmp_path / "silver.spacy", exclusive_cats=True)
    docs = read(tmp_path / "silver.spacy")
    assert [annotation(doc) for doc in docs] == expected(nlp, texts)
    assert (
        len(docs)
        == silver.documents
        == silver.annotated
        == 14 + sum(map(bool, map(str.strip, ODD)))
    )
    assert silver.words == sum(map(len, docs))
    for doc in docs:
        has_person = any(token.text in stand_ins.PEOPLE for token in doc)
        assert doc.cats == {"travel": float(has_person), "food": float(not has_person)}
        assert not doc.user_data
    assert {path.name for path in tmp_path.glob("silver*")} == {"silver.spacy"}


def test_a_parsers_annotation_survives(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_parse")
    annotate_texts(nlp, [texts], tmp_path / "silver.spacy")
    docs = read(tmp_path / "silver.spacy")
    assert [annotation(doc) for doc in docs] == expected(nlp, texts)
    assert all(doc.has_annotation("DEP") for doc in docs)


def test_a_directory_of_parts_and_long_documents(texts: Path, tmp_path: Path) -> None:
    nlp = deciders(*ALL)
    silver = annotate_texts(nlp, [texts, texts], tmp_path / "out", shard_docs=7, max_words=50)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0] == "silver-00000.spacy"
    assert names[-1] == "silver.json"
    assert len(names) == -(-silver.documents // 7) + 1
    docs = read(tmp_path / "out")
    assert max(map(len, docs)) == 50
    assert sum(doc.text.count("x") for doc in docs if len(doc) == 50) == 2 * 300
    whole = annotate_texts(nlp, [texts], tmp_path / "limited.spacy", limit=3)
    assert whole.documents == 3


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """It asks about no document twice, but for the part that the kill has cut."""
    texts = tmp_path / "numbered.txt"
    texts.write_text("".join(f"Ann saw Oslo {i} times.\n" for i in range(20)))
    pipeline = tmp_path / "pipeline"
    deciders("tests_service").to_disk(pipeline)
    code = tmp_path / "code.py"
    source = "import time\nfrom pathlib import Path\n"
    source += "from tests.distillation.pipeline import deciders\n"
    source += f"deciders.Service.calls = Path({str(Service.calls)!r})\n"
    source += "call = deciders.Service.__call__\n"
    source += "def slow(self, doc):\n    time.sleep(0.05)\n    return call(self, doc)\n"
    source += "deciders.Service.__call__ = slow\n"
    code.write_text(source)
    words = [*("distil", "annotate"), str(pipeline), str(texts)]
    words += ["--output", str(tmp_path / "out"), "--shard-docs", "4", "--code", str(code)]
    command = [sys.executable, "-m", "spacy", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = tmp_path / "out" / "silver-00001.spacy"
    while process.poll() is None and not second.exists():
        time.sleep(0.01)
    assert process.poll() is None, "it was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    nlp = deciders("tests_service")
    assert 20 <= len(asked()) <= 20 + 2 * 4
    assert all(asked().count(text) == 1 for text in asked()[:4])
    annotate_texts(nlp, [texts], tmp_path / "whole", shard_docs=4)
    for path in sorted((tmp_path / "whole").glob("*.spacy")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    before = len(asked())
    again = annotate_texts(nlp, [texts], tmp_path / "whole", shard_docs=4)
    assert (again.annotated, len(asked())) == (0, before)


def test_an_error_of_the_pipeline_names_the_document_and_keeps_the_rest(
    texts: Path, tmp_path: Path
) -> None:
    failing = deciders("tests_service", tests_service={"fail": "Nothing"})
    with pytest.raises(TeacherError, match=r"'tests_service' failed on document 14 \('Nothing her"):
        annotate_texts(failing, [texts], tmp_path / "out", shard_docs=5, batch_size=3)
    n_asked = len(asked())
    well = deciders("tests_service", tests_service={"fail": "Nothing", "times": 0})
    with pytest.raises(ConfigError, match="of another pipeline or other settings"):
        annotate_texts(well, [texts], tmp_path / "out", shard_docs=5)
    failing.get_pipe("tests_service").times = 0  # type: ignore[attr-defined]
    silver = annotate_texts(failing, [texts], tmp_path / "out", shard_docs=5, batch_size=3)
    assert silver.annotated == silver.documents - 10
    assert len(asked()) == n_asked + silver.annotated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_docs": -1}, "shard_docs = -1"),
        ({"min_confidence": 1.5}, r"min_confidence = 1\.5"),
        ({"rate_limit": 0.0}, r"annotate\.rate_limit = 0\.0"),
        ({"min_confidence": 0.5}, "no component leaves scores"),
    ],
)
def test_settings_that_cannot_work(
    texts: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        annotate_texts(deciders("tests_zero_shot"), [texts], tmp_path / "a.spacy", **options)
    assert not (tmp_path / "a.spacy").exists()


def test_outputs_and_texts_that_are_refused(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_zero_shot")
    with pytest.raises(ConfigError, match=r"is not the name of a \.spacy file"):
        annotate_texts(nlp, [texts], tmp_path / "silver")
    (tmp_path / "old.spacy").write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        annotate_texts(nlp, [texts], tmp_path / "old.spacy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(ConfigError, match="no silver data"):
            annotate_texts(nlp, [texts], tmp_path / "full", shard_docs=3, force=force)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(CorpusError, match="no document with text"):
        annotate_texts(nlp, [empty], tmp_path / "a.spacy")
    annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=3)
    with pytest.raises(ConfigError, match="more documents than are given"):
        annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=3, limit=6)
    other = tmp_path / "other.txt"
    other.write_text("Ann left.\nBob came.\nOslo.\n")
    with pytest.raises(ConfigError, match="of other texts"):
        annotate_texts(nlp, [other], tmp_path / "out", shard_docs=3)
    annotate_texts(nlp, [other], tmp_path / "out", shard_docs=3, force=True)
    assert [doc.text for doc in read(tmp_path / "out")] == ["Ann left.", "Bob came.", "Oslo."]
    assert len(list((tmp_path / "out").glob("*.spacy"))) == 1


def test_a_damaged_part_is_made_again(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_zero_shot")
    annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=6)
    part = tmp_path / "out" / "silver-00001.spacy"
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    assert annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=6).annotated == 6
    assert part.read_bytes() == whole


def test_confidence_of_cats_and_spans(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_cats", tests_cats={"rest": False})  # 0.8, or 0.1 without people
    sure = annotate_texts(nlp, [texts], tmp_path / "a.spacy", min_confidence=0.85)
    assert sure.left_out > 3
    docs = read(tmp_path / "a.spacy")
    assert len(docs) == sure.documents > 3
    assert not {token.text for doc in docs for token in doc} & stand_ins.PEOPLE
    spans = deciders(
        "tests_spans"
    )  # a span of 0.3 wherever there is an entity before another token
    sure = annotate_texts(spans, [texts], tmp_path / "b.spacy", min_confidence=0.5)
    docs = read(tmp_path / "b.spacy")
    assert len(docs) == sure.documents > 3
    assert all(len(doc.spans["sc"]) == 0 or doc.spans["sc"][-1].end == len(doc) for doc in docs)
    wild = deciders("tests_cats", tests_cats={"scale": 20.0})
    with pytest.raises(ConfigError, match=r"doc\.cats\['travel'\] = .* --exclusive-cats"):
        annotate_texts(wild, [texts], tmp_path / "c.spacy")
    annotate_texts(wild, [texts], tmp_path / "c.spacy", exclusive_cats=True)
    assert {sum(doc.cats.values()) for doc in read(tmp_path / "c.spacy")} == {1.0}


def test_confidence_of_softmax_is_that_of_the_model(
    teacher: Language, texts: Path, tmp_path: Path
) -> None:
    docs = list(map(teacher, _given(texts)))
    probabilities = []
    for doc in docs:
        lowest = []
        for name in ("tagger", "morphologizer", "senter", "trainable_lemmatizer"):
            logits = np.asarray(teacher.get_pipe(name).model.predict([doc])[0], dtype="d")  # type: ignore[attr-defined]
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            if teacher.get_pipe(name).model.layers[-1].attrs.get("softmax_normalize"):  # type: ignore[attr-defined]
                weights = logits
            lowest.append((weights / weights.sum(axis=1, keepdims=True)).max(axis=1).min())
        probabilities.append(min([*lowest, max(doc.cats.values())]))
    middle = float(np.median(probabilities))
    silver = annotate_texts(teacher, [texts], tmp_path / "a.spacy", min_confidence=middle)
    kept = [doc.text for doc in read(tmp_path / "a.spacy")]
    assert kept == [d.text for d, p in zip(docs, probabilities, strict=True) if p >= middle - 1e-6]
    assert 0 < silver.left_out < len(docs)


def _given(path: Path) -> list[str]:
    given = [json.loads(line)["text"] for line in path.read_text(encoding="utf8").splitlines()]
    return [text for text in given if text.strip()]


def test_the_command(texts: Path, tmp_path: Path) -> None:
    deciders("tests_zero_shot").to_disk(tmp_path / "pipeline")
    words = ["annotate", str(tmp_path / "pipeline"), str(texts), "--output"]
    result = CliRunner().invoke(distil_cli, [*words, str(tmp_path / "silver.spacy")])
    assert result.exit_code == 0, result.output
    assert "Saved 20 documents" in result.output
    result = CliRunner().invoke(distil_cli, [*words, str(tmp_path / "silver.txt")])
    assert result.exit_code == 1
    assert "is not the name of a .spacy file" in " ".join(result.output.split())
