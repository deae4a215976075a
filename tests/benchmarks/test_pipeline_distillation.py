"""The ablation of pipeline distillation: text, data, rows, tables and timing."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus
from spacy.util import load_config as load_spacy_config

from benchmarks.common import comparison, sampling, score_tables
from benchmarks.common.commands import Command, choose, write_config
from benchmarks.common.rounds import Rounds
from benchmarks.common.sampling import HeldOut, Source
from benchmarks.pipeline_distillation import accuracy, banking77, rows, speed, table, text
from benchmarks.pipeline_distillation.rows import ROWS, PipelineInputs
from project.finished import FINISHED
from project.training import configure, read_summary
from scripts.corpus import Dataset, make_corpus
from spacy_distil.distillation.pipeline.config import load_config
from spacy_distil.distillation.pipeline.corpus import read_transfer_set
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.report.bootstrap import paired_interval
from tests.util import adam, make_examples, make_nlp

REPO = Path(__file__).parents[2]
SUMMARY = {
    "lang": "en",
    "layers": {"pos": True, "tag": True, "ents": True, "cats": True, "cats_exclusive": True},
    "scored": {"pos": True, "tag": True, "ents": True, "cats": True},
    "splits": {"train": {"tokens": 200_000}},
}

# Text


def paragraph(name: str, n_words: int) -> str:
    """Words that no other paragraph has."""
    letters = name.translate(str.maketrans("0123456789", "abcdefghij"))
    return " ".join(f"{letters}{'x' * (i + 1)}" for i in range(n_words)) + "."


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two sources: 30 articles of 4 paragraphs with 40 words each, and 300 sentences of 10."""
    directory = tmp_path / "text"
    directory.mkdir()
    articles = ["\n".join(paragraph(f"a{i}p{j}q", 40) for j in range(4)) + "\n" for i in range(30)]
    (directory / "articles.txt").write_text("\n".join(articles))
    sentences = [paragraph(f"s{i}q", 10) for i in range(300)]
    (directory / "sentences.txt").write_text("\n".join(sentences) + "\n")
    return directory


SOURCES = (Source("articles", 0.75), Source("sentences", 0.25, sentences=True))


def test_sources_have_their_shares(texts: Path) -> None:
    chosen = sampling.sample(texts, 2000, sources=SOURCES)
    words = {name: sum(len(doc.split()) for doc in docs) for name, docs in chosen.items()}
    # A share is exceeded by less than a document.
    assert 1500 <= words["articles"] < 1500 + sampling.MOST_WORDS
    assert 500 <= words["sentences"] < 510
    assert sum(source.share for source in sampling.SOURCES) == pytest.approx(1)
    assert sum(source.share for source in sampling.SOURCES[:3]) == pytest.approx(0.5)


def test_documents_are_whole_neighbouring_paragraphs(texts: Path) -> None:
    chosen = sampling.sample(texts, 2000, sources=SOURCES)
    for document in chosen["articles"]:
        # 3 of the 4 paragraphs reach 100 words; the last is left for itself.
        names = [word.removesuffix("x") for word in document.split() if word.count("x") == 1]
        number = names[0].split("p")[0]
        together = [f"{number}p{letter}q" for letter in "abcd"]
        assert names in (together[:3], together[3:])
        assert len(document.split()) == 40 * len(names)
    assert all(len(document.split()) == 10 for document in chosen["sentences"])


def test_the_sample_depends_on_the_seed_alone(texts: Path) -> None:
    first = sampling.sample(texts, 2000, sources=SOURCES)
    assert sampling.sample(texts, 2000, sources=SOURCES) == first
    assert sampling.sample(texts, 2000, sources=SOURCES, seed=1) != first
    # Another share of one source leaves the other as it is.
    other = (SOURCES[0], replace(SOURCES[1], share=0.1))
    assert sampling.sample(texts, 2000, sources=other)["articles"] == first["articles"]


def test_nothing_comes_in_twice(texts: Path) -> None:
    path = texts / "sentences.txt"
    path.write_text(path.read_text() + path.read_text().upper())
    chosen = sampling.sample(texts, 2000, sources=(Source("sentences", 0.5, sentences=True),))
    counts = Counter(document.casefold() for document in chosen["sentences"])
    assert set(counts.values()) == {1}
    with pytest.raises(CorpusError, match="words short"):
        sampling.sample(texts, 6010, sources=(Source("sentences", 0.5, sentences=True),))
    with pytest.raises(CorpusError, match="No such file"):
        sampling.sample(texts, 10, sources=(Source("absent", 1.0),))


def test_held_out_sentences_are_left_out(texts: Path) -> None:
    held_out = HeldOut(["Thanks, Ann!", "We went to see the old harbour of Oslo in 2021."])
    assert "thanks ann" in held_out
    assert "It came late. THANKS, Ann!  It works." in held_out
    assert "Thanks, Ann, for all of it." not in held_out
    assert "He says that we went to see the old harbour of Oslo again." in held_out
    assert "He says that we went to see the old harbour." not in held_out
    names = HeldOut([paragraph("a7p2q", 40)])
    chosen = sampling.sample(texts, 2000, sources=SOURCES, held_out=names)
    assert not any("ahpcq" in document for document in chosen["articles"])


def test_tables_and_headings_are_no_prose() -> None:
    assert sampling.is_prose("This is a sentence, if a short one.")
    assert not sampling.is_prose("Key Risks")
    assert not sampling.is_prose("| 0x00 | 12 | 17 | 33,000 | -- |")


def test_text_command(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, source in enumerate(sampling.SOURCES):
        file = texts / ("sentences.txt" if source.sentences else "articles.txt")
        # "q" ends a paragraph's name: each source has words of its own.
        content = file.read_text().replace("q", f"q{'abcdefgh'[i]}")
        (texts / f"{source.name}.txt").write_text(content)
    vocab = spacy.blank("en").vocab
    words = paragraph("s3qa", 10).rstrip(".").split()
    doc = Doc(vocab, words=[*words, "."], sent_starts=[True] + [False] * 10)
    DocBin(docs=[doc]).to_disk(tmp_path / "dev.spacy")
    output = tmp_path / "made" / "text.jsonl"
    text.main(texts, output, words=1000, held_out=[tmp_path / "dev.spacy"], seed=3)
    documents = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    expected = sampling.sample(texts, 1000, seed=3, held_out=HeldOut([doc.text]))
    assert list(expected) == [source.name for source in sampling.SOURCES]
    assert sorted(documents) == sorted(doc for docs in expected.values() for doc in docs)
    total = sum(len(document.split()) for document in documents)
    assert f"{total:,}" in capsys.readouterr().out


# BANKING77


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    directory = tmp_path / "banking_data"
    directory.mkdir()
    for split, n in (("train", 40), ("test", 5)):
        with (directory / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            for i in range(n):
                writer.writerow([f"Where is my card,\n {split} {i}?", "arrival"])
                writer.writerow([f"Why was I charged, {split} {i}?", "fee"])
            writer.writerow([f"What is the limit, {split}?", "limit"])
            writer.writerow([f"Is there a limit, {split}?", "limit"])
    return directory


def read_jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_banking77_becomes_a_corpus_with_exclusive_labels(questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "jsonl"
    banking77.main(questions, output, seed=0)
    train, dev, test = (read_jsonl(output / f"{split}.jsonl") for split in ("train", "dev", "test"))
    assert Counter(row["label"] for row in dev) == {"arrival": 4, "fee": 4, "limit": 1}
    assert Counter(row["label"] for row in train) == {"arrival": 36, "fee": 36, "limit": 1}
    assert len(test) == 12
    assert not {row["text"] for row in train} & {row["text"] for row in dev}
    assert {"text": "Where is my card, test 0?", "label": "arrival"} in test

    paths: dict[str, Path | None] = {s: output / f"{s}.jsonl" for s in ("train", "dev", "test")}
    make_corpus(Dataset.custom, tmp_path / "corpus", paths=paths)
    summary = read_summary(tmp_path / "corpus")
    template = load_spacy_config(REPO / "configs" / "train.cfg", interpolate=False)
    assert configure(template, summary)["nlp"]["pipeline"] == ["transformer", "textcat"]
    # Rows that are not about entities do with such a corpus.
    assert rows.make_config(ROWS["soft-text"], summary)["nlp"]["pipeline"][1:] == ["textcat"]
    with pytest.raises(ConfigError, match="entities"):
        rows.make_config(ROWS["ner-silver"], summary)


def test_banking77_needs_its_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,intent\nHello,greeting\n")
    with pytest.raises(CorpusError, match="intent"):
        banking77.read_questions(tmp_path / "train.csv")


# Rows


@pytest.fixture
def inputs(tmp_path: Path) -> PipelineInputs:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "corpus.json").write_text(json.dumps(SUMMARY))
    for name in ("distil_ner", "ner"):
        config = {"nlp": {"pipeline": ["ner"]}, "components": {"ner": {"factory": name}}}
        (tmp_path / name).mkdir()
        load_spacy_config(REPO / "configs" / "cnn.cfg", interpolate=False).merge(config).to_disk(
            tmp_path / name / "config.cfg"
        )
    for name in ("encoder", "distilled"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.jsonl").write_text('{"text": "Hello."}\n')
    return PipelineInputs(
        output=tmp_path / "rows",
        corpus=corpus,
        epochs=8,
        encoder=tmp_path / "encoder",
        teacher=tmp_path / "distil_ner",
        teacher_ner=tmp_path / "ner",
        distilled=tmp_path / "distilled",
        text=tmp_path / "text.jsonl",
    )


def options(command: Command) -> dict[str, str]:
    """The options of a command."""
    pairs = zip(command.arguments, command.arguments[1:], strict=False)
    return {name[2:]: value for name, value in pairs if name.startswith("--")}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_has_a_config_that_distillation_accepts(name: str, inputs: PipelineInputs) -> None:
    row = ROWS[name]
    command = rows.make_commands(row, 1, inputs)[-1]
    config = inputs.output / "configs" / f"{name}.cfg"
    spacy_config = load_spacy_config(config)
    assert spacy_config["components"]["ner"]["factory"] == row.ner
    if not row.is_distilled:
        assert command.arguments[:3] == ("scripts.train", str(config), str(inputs.output / name))
        assert options(command)["seeds"] == "1"
        assert "distillation" not in spacy_config
        return
    assert command.arguments[:3] == ("spacy", "distil", "pipeline")
    assert command.output == inputs.output / name / "seed-1"
    overrides = {k: v for k, v in options(command).items() if "." in k}
    # The command line reads numbers; these are text here.
    numbers = {"training.max_steps": 1000, "training.eval_frequency": 100}
    settings = load_config(config, {**overrides, **numbers})
    assert {stage.name: stage.end - stage.start for stage in settings.stages} == {
        kind: round(1000 * stage.share) for kind, stage in row.stages.items()
    }
    for stage in settings.stages:
        weights = row.stages[stage.name]
        assert (stage.hidden, stage.soft, stage.gold) == (
            weights.hidden,
            weights.soft,
            weights.gold,
        )
    assert (settings.corpus is not None) == row.text == ("paths.text" in overrides)
    assert settings.student.start == ("teacher" if row.start == "teacher" else "config")
    if row.start == "teacher":
        assert settings.student.n_layers == row.n_layers
    assert ("paths.encoder" in overrides) == (row.start in ("distilled", "cut"))
    assert str(inputs.teacher if row.ner == "distil_ner" else inputs.teacher_ner) in (
        command.arguments
    )


def test_all_rows_have_the_same_budget(inputs: PipelineInputs) -> None:
    budgets = {
        (chosen["training.batcher.size"], chosen["training.max_steps"])
        for row in ROWS.values()
        for chosen in [options(rows.make_commands(row, 0, inputs)[-1])]
    }
    assert budgets == {("1000", "1600")}  # 8 epochs of 200,000 words


def test_rows_share_a_cache_only_where_they_record_the_same(inputs: PipelineInputs) -> None:
    caches = {
        name: options(rows.make_commands(row, 0, inputs)[-1])["distillation.cache"]
        for name, row in ROWS.items()
        if row.is_distilled
    }
    assert caches["hidden-text"] == caches["hidden-text-gold"]
    assert caches["two-layers"] == caches["soft-text"]
    assert caches["soft"] == caches["distilled-soft"] != caches["soft-text"]
    assert caches["soft-text"] == caches["soft-gold-text"] != caches["hidden-text"]
    assert len({caches[name] for name in ("soft-text", "ner-soft", "ner-silver")}) == 3


def test_other_hidden_states_have_a_cache_of_their_own(inputs: PipelineInputs) -> None:
    last = [ROWS["hidden-text"], replace(ROWS["hidden-text"], n_layers=2)]
    even = [replace(row, hidden_layers="even") for row in last]
    assert last[0].cache == last[1].cache
    # Of evenly spaced layers, how many there are decides which.
    assert len({row.cache for row in (*last, *even)}) == 3
    assert replace(ROWS["soft-text"], hidden_layers="even").cache == ROWS["soft-text"].cache
    for row in (last[0], even[0]):
        config = write_config(rows.make_config(row, SUMMARY), inputs.output, row.name)
        assert load_config(config).hidden.layers == row.hidden_layers


@pytest.mark.parametrize("name", ["copied", "distilled"])
def test_a_start_is_made_of_weights_config_and_tokenizer(
    name: str, inputs: PipelineInputs, bert_dir: Path
) -> None:
    encoder = inputs.output / "source"
    shutil.copytree(bert_dir, encoder)
    (encoder / "README.md").write_text("Of no matter.")
    field = {"copied": "encoder", "distilled": "distilled"}[name]
    start, train = rows.make_commands(ROWS[name], 0, replace(inputs, **{field: encoder}))
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= {path.name for path in start.inputs}
    assert {path for path in encoder.iterdir() if path.suffix != ".md"} == set(start.inputs)
    assert options(train)["paths.encoder"] == str(start.output)


def test_a_cut_student_keeps_what_matters_on_the_corpus(inputs: PipelineInputs) -> None:
    row = ROWS["one-layer-384"]
    cut, distil = rows.make_commands(row, 0, inputs)
    assert cut.arguments[:4] == ("spacy", "distil", "student", f"{inputs.teacher}/transformer")
    chosen = options(cut)
    assert (chosen["layers"], chosen["from"], chosen["ffn"]) == ("1", "first", "384")
    assert chosen["corpus"] == str(inputs.corpus / "train.spacy")
    assert options(distil)["paths.encoder"] == chosen["output"] == str(cut.output)


def test_what_a_row_needs(inputs: PipelineInputs) -> None:
    with pytest.raises(ConfigError, match="'soft-text' needs --text"):
        rows.make_commands(ROWS["soft-text"], 0, replace(inputs, text=None))
    with pytest.raises(ConfigError, match="needs a teacher with distil_ner"):
        rows.make_commands(ROWS["soft"], 0, replace(inputs, teacher=inputs.teacher_ner))
    with pytest.raises(ConfigError, match="needs --teacher-ner"):
        rows.make_commands(ROWS["ner-soft"], 0, replace(inputs, teacher_ner=None))
    with pytest.raises(ConfigError, match="no such file"):
        rows.make_commands(
            ROWS["distilled"], 0, replace(inputs, distilled=inputs.output / "absent")
        )
    with pytest.raises(ConfigError, match="No row softer"):
        choose(ROWS, ["soft", "softer"])
    # `before` names rows that come earlier, so that the table can have them.
    names = list(ROWS)
    for i, row in enumerate(ROWS.values()):
        assert set(row.before) <= set(names[:i])


def test_a_finished_command_is_skipped(tmp_path: Path) -> None:
    given, output = tmp_path / "in.json", tmp_path / "out"
    output.mkdir()
    given.write_text("[1]")
    made = output / "out.json"
    command = Command(("json.tool", str(given), str(made)), output, (given,))
    command.run()
    assert json.loads(made.read_text()) == [1]
    made.unlink()
    command.run()
    assert not made.exists()
    given.write_text("[2]")
    command.run()
    assert json.loads(made.read_text()) == [2]
    made.unlink()
    replace(command, arguments=(*command.arguments, "--sort-keys")).run()
    assert made.exists()


def test_dry_run_prints_the_commands(
    inputs: PipelineInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.main(
        inputs.output,
        ["distilled", "soft"],
        corpus=inputs.corpus,
        encoder=inputs.encoder,
        distilled=inputs.distilled,
        teacher=inputs.teacher,
        seeds="0,1",
        dry_run=True,
    )
    lines = [line.split()[2:4] for line in capsys.readouterr().out.splitlines()]
    distilled = [["scripts.start_student", "distilled"]]
    distilled += [["scripts.train", str(inputs.output / "configs" / "distilled.cfg")]]
    assert lines == [*distilled, *distilled, *[["spacy", "distil"]] * 2]
    assert not (inputs.output / "soft").exists()


# Table


@pytest.fixture(scope="module")
def trained(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directory of rows, and test documents. `distilled` has two seeds, `soft` is unfinished."""
    root = tmp_path_factory.mktemp("rows")
    for updates, name in ((1, "copied/seed-0"), (3, "distilled/seed-0"), (6, "distilled/seed-1")):
        nlp = make_nlp(bert_dir, ["tagger", "ner", "textcat"])
        optimizer = adam(5e-3)
        for _ in range(updates):
            nlp.update(make_examples(nlp), sgd=optimizer)
        (root / name).mkdir(parents=True)
        nlp.to_disk(root / name / "model-best")
        (root / name / FINISHED).write_text("{}")
    shutil.copytree(root / "copied" / "seed-0" / "model-best", root / "soft/seed-0/model-best")
    nlp = spacy.blank("en")
    docs = [example.reference for example in make_examples(nlp, 24, start=100)]
    DocBin(docs=docs).to_disk(root / "test.spacy")
    return root, root / "test.spacy"


@pytest.fixture(scope="module")
def scored(trained: tuple[Path, Path], torch_pipeline: Path) -> dict[str, comparison.ScoredRow]:
    root, test = trained
    return {row.name: row for row in table.collect(root, test, {"distil_ner": torch_pipeline})}


def evaluate(path: str, test: Path) -> dict[str, Any]:
    nlp = spacy.load(path)
    return nlp.evaluate(list(Corpus(test)(nlp)))


@pytest.mark.slow
def test_finished_rows_are_scored(
    scored: dict[str, comparison.ScoredRow], trained: tuple[Path, Path]
) -> None:
    assert {name: len(row.pipelines) for name, row in scored.items()} == {
        "teacher": 1,
        "copied": 1,
        "distilled": 2,
    }
    for row in scored.values():
        for path, scores in zip(row.pipelines, row.scores, strict=True):
            expected = evaluate(path, trained[1])
            for key in ("tag_acc", "ents_f", "cats_macro_f"):
                assert scores.values[key] == expected[key]


@pytest.mark.slow
def test_accuracy_is_the_share_of_right_labels(
    scored: dict[str, comparison.ScoredRow], trained: tuple[Path, Path]
) -> None:
    for row in scored.values():
        assert comparison.has_score(comparison.ACCURACY, row)
        expected = []
        for path in row.pipelines:
            nlp = spacy.load(path)
            right = [
                max((cats := nlp(example.x).cats), key=cats.__getitem__)
                == max(example.y.cats, key=example.y.cats.__getitem__)
                for example in Corpus(trained[1])(nlp)
            ]
            expected.append(sum(right) / len(right))
        assert comparison.seed_scores(comparison.ACCURACY, row) == pytest.approx(expected)
        counts = row.scores[0].counts["cats"].sum(axis=0)
        assert comparison.accuracy(counts.astype(float)) == pytest.approx(expected[0])


def test_accuracy_is_for_exclusive_labels_alone() -> None:
    hit, confused = [[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 1]]
    assert comparison.is_exclusive(np.array([hit, confused]))
    assert not comparison.is_exclusive(np.array([hit, [[1, 0, 0], [1, 0, 0]]]))  # two labels
    assert not comparison.is_exclusive(np.array([hit, [[0, 0, 1], [0, 0, 0]]]))  # none given


@pytest.mark.slow
def test_differences_are_paired(scored: dict[str, comparison.ScoredRow]) -> None:
    lines, steps = comparison.compare(list(scored.values()))
    by_name = {line.name: line for line in lines}
    teacher, copied = scored["teacher"].scores[0], scored["copied"].scores[0]
    for column in comparison.TASKS:
        if column.key not in copied.values:
            continue
        counts = copied.counts[column.counts], teacher.counts[column.counts]
        line = by_name["copied"]
        expected = copied.values[column.key] - teacher.values[column.key]
        assert line.to_teacher[column.key].value == pytest.approx(expected)
        assert line.to_teacher[column.key].interval == pytest.approx(
            paired_interval(column.metric, *counts)
        )
        ratio = copied.values[column.key] / teacher.values[column.key]
        assert line.retention[column.key].value == pytest.approx(ratio)
        assert line.retention[column.key].interval == pytest.approx(
            paired_interval(column.metric, *counts, combine=np.divide)
        )
    assert not by_name["teacher"].retention
    (step,) = steps
    assert (step.row, step.before) == ("distilled", "copied")
    seeds = [one.values["tag_acc"] for one in scored["distilled"].scores]
    difference = step.differences["tag_acc"]
    assert difference.value == pytest.approx(np.mean(seeds) - copied.values["tag_acc"])
    low, high = difference.interval
    assert low < difference.value < high
    assert by_name["distilled"].scores["tag_acc"].std == pytest.approx(np.std(seeds, ddof=1))


def test_a_pipeline_is_scored_once(trained: tuple[Path, Path], tmp_path: Path) -> None:
    root, test = trained
    pipeline, cache = tmp_path / "pipeline", tmp_path / "scores.json"
    shutil.copytree(root / "copied" / "seed-0" / "model-best", pipeline)
    scores = comparison.score_once(pipeline, test, cache)
    kept = json.loads(cache.read_text())
    kept["scores"]["n_words"] = 7  # as no document set of ours has
    cache.write_text(json.dumps(kept))
    again = comparison.score_once(pipeline, test, cache)
    assert again.n_words == 7
    assert {name: array.tolist() for name, array in again.counts.items()} == {
        name: array.tolist() for name, array in scores.counts.items()
    }
    meta = json.loads((pipeline / "meta.json").read_text())
    (pipeline / "meta.json").write_text(json.dumps({**meta, "description": "another"}))
    assert comparison.score_once(pipeline, test, cache).n_words == scores.n_words


@pytest.mark.slow
def test_scores_of_another_scoring_are_not_used(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, test = trained
    pipeline, cache = root / "copied" / "seed-0" / "model-best", tmp_path / "scores.json"
    scores = comparison.score_once(pipeline, test, cache)
    kept = json.loads(cache.read_text())
    kept["scores"]["n_words"] = 7
    cache.write_text(json.dumps(kept))
    monkeypatch.setattr(comparison, "SCORING_VERSION", comparison.SCORING_VERSION + 1)
    assert comparison.score_once(pipeline, test, cache).n_words == scores.n_words
    # A cache from when Scores had another field, and one from before there were versions.
    source = {**kept["source"], "version": comparison.SCORING_VERSION}
    older = {**source, "fields": [*source["fields"], "n_tokens"]}
    unversioned = {key: source[key] for key in ("pipeline", "test")}
    for given in (older, unversioned):
        cache.write_text(json.dumps({"source": given, "scores": {**kept["scores"], "n_tokens": 1}}))
        assert comparison.score_once(pipeline, test, cache).n_words == scores.n_words


@pytest.mark.slow
def test_tables_are_written(
    trained: tuple[Path, Path], torch_pipeline: Path, tmp_path: Path
) -> None:
    root, test = trained
    table.main(root, test, tmp_path, teacher=torch_pipeline, teacher_ner=None, stem="found")
    markdown = (tmp_path / "found.md").read_text()
    result = json.loads((tmp_path / "found.json").read_text())
    assert [line["name"] for line in result["lines"]] == ["teacher", "copied", "distilled"]
    accuracy = result["lines"][1]["scores"]["tag_acc"]["mean"]
    assert f"| copied: layers copied, gold only | 1 | 0.0 M | {accuracy * 100:.2f} |" in markdown
    assert f"| distilled {score_tables.MINUS} copied | " in markdown
    assert "Measured on" in markdown
    assert result["machine"]["versions"]["spacy"] == spacy.__version__
    with pytest.raises(ConfigError, match="no finished row"):
        table.collect(tmp_path, test, {})


# Accuracy


@pytest.mark.slow
def test_accuracy_command(trained: tuple[Path, Path], tmp_path: Path) -> None:
    root, test = trained
    named = {"large": ["distilled/seed-0"], "small": ["copied/seed-0", "distilled/seed-1"]}
    paths = {name: [str(root / p / "model-best") for p in some] for name, some in named.items()}
    pipelines = [f"{name}={path}" for name, some in paths.items() for path in some]
    accuracy.main(test, pipelines, tmp_path, "large", "found")
    large, small = json.loads((tmp_path / "found.json").read_text())["lines"]
    assert (large["name"], large["teacher"], large["pipelines"]) == ("large", "", paths["large"])
    assert (small["name"], small["teacher"], small["pipelines"]) == (
        "small",
        "large",
        paths["small"],
    )
    key = comparison.ACCURACY.key
    right = {name: [] for name in paths}
    for name, some in paths.items():
        for nlp in map(spacy.load, some):
            right[name].append(
                np.array(
                    [
                        max((cats := nlp(example.x).cats), key=cats.__getitem__)
                        == max(example.y.cats, key=example.y.cats.__getitem__)
                        for example in Corpus(test)(nlp)
                    ]
                )
            )
    teacher, student = (np.mean(right[name], axis=0) for name in ("large", "small"))
    assert small["scores"][key]["mean"] == pytest.approx(student.mean())
    assert small["retention"][key]["value"] == pytest.approx(student.mean() / teacher.mean())
    assert small["to_teacher"][key]["value"] == pytest.approx(student.mean() - teacher.mean())
    # The mean over seeds of each document's hits, as counts of one label.
    expected = paired_interval(lambda hits: hits / len(student), student, teacher)
    assert small["to_teacher"][key]["interval"] == pytest.approx(expected)
    assert "textcat acc" in (tmp_path / "found.md").read_text()


def test_accuracy_needs_names_and_exclusive_labels(
    trained: tuple[Path, Path], bert_dir: Path, tmp_path: Path
) -> None:
    root, test = trained
    pipeline = str(root / "copied" / "seed-0" / "model-best")
    with pytest.raises(ConfigError, match="expected NAME=PATH"):
        accuracy.group([pipeline])
    with pytest.raises(ConfigError, match="expected one of the pipelines' names, distilled"):
        accuracy.score({"distilled": [pipeline]}, test, "teacher")
    make_nlp(bert_dir, ["tagger"]).to_disk(tmp_path / "tagger")
    with pytest.raises(CorpusError, match="tagger has no accuracy on"):
        accuracy.score({"tagger": [str(tmp_path / "tagger")]}, test, None)


def test_points_have_signs() -> None:
    minus = score_tables.MINUS
    gain = comparison.Difference(0.012345, (-0.00001, 0.02))
    assert score_tables.points(gain, 2) == "+1.23 [+0.00, +2.00]"
    loss = comparison.Difference(-0.01, (-0.02, 0.0))
    assert score_tables.points(loss, 1) == f"{minus}1.0 [{minus}2.0, +0.0]"


# Speed


class Words(list):  # type: ignore[type-arg]
    """A transfer example. Its length is its number of words."""


def test_sides_take_turns_on_the_same_batches() -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        return lambda batch: calls.append((name, len(batch[0])))

    def batches() -> Iterator[Any]:
        return ([Words("a" * n)] for n in range(1, 100))

    measured = speed.measure({"x": side("x"), "y": side("y")}, batches(), steps=2, rounds=2)
    first = [("x", 1), ("x", 2), ("y", 1), ("y", 2)]
    second = [("y", 3), ("y", 4), ("x", 3), ("x", 4)]
    assert calls == [*first, *second, ("x", 5), ("x", 6), ("y", 5), ("y", 6)]
    assert measured.words == [7, 11]  # the first round warms up


def test_plain_training_is_on_docs_of_its_own() -> None:
    class Witness:
        seen: ClassVar[list[Doc]] = []

        def __call__(self, doc: Doc) -> Doc:
            return doc

        def update(self, examples: list[Any], **_: Any) -> None:
            self.seen.extend(example.predicted for example in examples)

    Language.factory("witness", func=lambda nlp, name: Witness())
    nlp, other = spacy.blank("en"), spacy.blank("en")
    nlp.add_pipe("witness")
    own, theirs = (read_transfer_set(n, lambda n: make_examples(n, 4), None) for n in (nlp, other))
    training = {"dropout": 0.1, "frozen_components": [], "annotating_components": []}
    training["optimizer"] = adam()
    speed.plain_step(nlp, training, own)([theirs.all[2], theirs.all[1]])
    assert [doc.text for doc in Witness.seen] == [theirs.docs[i].text for i in (2, 1)]
    assert all(doc.vocab is nlp.vocab for doc in Witness.seen)


def test_a_whole_run_gives_stages_their_shares() -> None:
    seconds = {speed.PLAIN: [2.0, 2.0], "stage hidden": [1.0, 2.0], "stage soft": [3.0, 4.0]}
    measured = speed.add_all_stages(
        Rounds(seconds, [10, 20]), {"stage hidden": 25, "stage soft": 75}
    )
    assert measured.seconds[speed.ALL_STAGES] == [2.5, 3.5]
    assert measured.words_per_second(speed.ALL_STAGES).max == pytest.approx(20 / 3.5)
    assert measured.ratio(speed.ALL_STAGES, speed.PLAIN).min == pytest.approx(2 / 3.5)


@pytest.mark.slow
def test_speed_command(torch_pipeline: Path, bert_dir: Path, tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    docs = [example.reference for example in make_examples(nlp, 40)]
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    summary = {**SUMMARY, "layers": {**SUMMARY["layers"], "pos": False}}  # type: ignore[dict-item]
    row = replace(ROWS["hidden-text-gold"], start="copied", ner="ner", text=False)
    config = rows.make_config(row, summary)
    config["components"]["transformer"]["model"]["window"] = None
    config.to_disk(tmp_path / "config.cfg")
    arguments = [f"--paths.{name}={tmp_path}/train.spacy" for name in ("train", "dev")]
    arguments += [f"--paths.encoder={bert_dir}", "--training.batcher.size=50"]
    context = type("Context", (), {"args": arguments})()
    speed.main(context, str(torch_pipeline), tmp_path / "config.cfg", tmp_path, 2, 2, -1)
    result = json.loads((tmp_path / f"{speed.STEM}.json").read_text())
    names = [speed.PLAIN, "stage hidden", "stage soft", "stage gold", speed.ALL_STAGES]
    assert list(result["seconds"]) == names
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in result["seconds"].values())
    assert "| stage gold | " in (tmp_path / f"{speed.STEM}.md").read_text()
