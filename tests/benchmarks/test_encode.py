from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc, DocBin
from spacy.training import Example

import benchmarks.encode.__main__ as encode
from benchmarks.common.project import TRANSFORMER_CONFIG
from benchmarks.common.rounds import Rounds
from benchmarks.common.spacy_transformers_twin import ENCODER_FACTORY
from benchmarks.encode import timing
from benchmarks.encode.__main__ import ENCODING, TRAINING
from benchmarks.encode.sides import (
    ENCODER,
    OURS,
    PIPES,
    ROWS,
    TEMPLATE_SETTINGS,
    THEIRS,
    PipelineSide,
    check_annotations,
    check_vectors,
    make_sides,
)
from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.errors import ConfigError
from tests.util import make_examples, torch_model_of, write_encoder

DASH = "\N{EN DASH}"
N_DOCS, N_SHOWN = 24, 16
pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without dropout, and with room for the longest window of a row."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert", positions=200)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    examples = make_examples(spacy.blank("en"), N_DOCS)
    path = tmp_path_factory.mktemp("docs") / "docs.spacy"
    DocBin(docs=[example.reference for example in examples]).to_disk(path)
    return path


# Arithmetic


def test_ratio_is_of_each_round() -> None:
    measured = Rounds({OURS: [1.0, 2.0, 4.0], THEIRS: [3.0, 4.0, 9.0]}, [12, 12, 12])
    # 3, 2 and 2.25; the ratio of the medians would be 2.
    assert encode.is_met(ENCODING, measured)
    assert not encode.is_met(encode.SpeedTarget("x", "x", 2.26), measured)
    table = encode.make_table(ENCODING, measured)
    assert table.rows == [
        [OURS, f"6 (3{DASH}12)", f"2.25 (2.00{DASH}3.00)", "2.2", "yes"],
        [THEIRS, f"3 (1{DASH}4)", "", "", ""],
    ]
    summary = encode.summarize(ENCODING, measured)
    assert summary["met"] is True
    assert summary["ratio"] == {OURS: {"median": 2.25, "min": 2.0, "max": 3.0}}
    assert summary["words_per_second"][THEIRS]["median"] == 3.0


def test_the_target_is_for_default_settings() -> None:
    seconds = {"window = 192": [1.0], OURS: [2.0], THEIRS: [3.0]}
    rows = encode.make_table(TRAINING, Rounds(seconds, [6])).rows
    assert [row[-2:] for row in rows] == [["", ""], ["1.8", "no"], ["", ""]]
    del seconds[OURS]
    assert encode.summarize(TRAINING, Rounds(seconds, [6]))["met"] is None


def test_rounds_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def task(name: str) -> timing.Task:
        def prepare(turn: int) -> Callable[[], int]:
            def run() -> int:
                calls.append((name, turn))
                return 10 + turn

            return run

        return prepare

    measured = timing.measure({"a": task("a"), "b": task("b")}, 2, log=lambda message: None)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert measured.words == [11, 12], "the words of the warm-up do not count"
    assert [len(seconds) for seconds in measured.seconds.values()] == [2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
def test_the_clock_waits_for_the_gpu() -> None:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> int:
        began.record()
        torch.cuda._sleep(10**8)  # clock cycles
        ended.record()
        return 1

    measured = timing.measure({"a": lambda turn: run}, 1, log=lambda message: None)
    assert measured.seconds["a"][0] > 0.99 * began.elapsed_time(ended) / 1000 > 0.01


def test_all_go_through_the_same_words() -> None:
    tasks = {"a": lambda turn: lambda: 3, "b": lambda turn: lambda: 4}
    with pytest.raises(ValueError, match="same words"):
        timing.measure(tasks, 1, log=lambda message: None)


def test_rows_by_key() -> None:
    assert encode.choose_rows("", ROWS) == list(ROWS)
    assert [row.key for row in encode.choose_rows("mixed, default", ROWS)] == ["default", "mixed"]
    with pytest.raises(ConfigError, match="--rows none: expected some of default, window"):
        encode.choose_rows("default,none", ROWS)
    # The first row measures the default settings.
    assert ROWS[0].title == OURS
    assert not ROWS[0].settings


def test_template_is_measured_as_it_is() -> None:
    template = spacy.util.load_config(TRANSFORMER_CONFIG)["components"]["transformer"]["model"]
    default = inspect.signature(DistilTransformer).parameters
    no_speed = {"@architectures", "name", "device", "frozen", "learn_rate_scale"}
    differs = {
        name: value
        for name, value in template.items()
        if name not in no_speed and value != default[name].default
    }
    assert differs == TEMPLATE_SETTINGS


def test_training_needs_all_annotations(docs: Path) -> None:
    nlp = spacy.blank("en")
    check_annotations(docs, make_examples(nlp, 2))
    for drop, missing in {"tags": "tags", "entities": "entities", "cats": "categories"}.items():
        with pytest.raises(ConfigError, match=f"no document has {missing}"):
            check_annotations(docs, make_examples(nlp, 2, drop=[drop]))


# The timed rows


def test_encoding_is_the_encoder_alone() -> None:
    nlp: Any = spacy.blank("en")
    seen: list[str] = []

    def note(doc: Doc) -> Doc:
        seen.append(doc.text)
        return doc

    def refuse(doc: Doc) -> Doc:
        raise AssertionError("a pipe behind the encoder ran")

    spacy.language.Language.component("note_docs", func=note)
    spacy.language.Language.component("refuse_docs", func=refuse)
    nlp.add_pipe("note_docs", name=ENCODER)
    nlp.add_pipe("refuse_docs")
    texts = [f"Text number {i}." for i in range(timing.WARM_UP_DOCS + 5)]
    texts[-2] = longest = "Text that is the longest."
    task = timing.encoding(nlp, texts, 8)
    assert task(0)() == 4 * timing.WARM_UP_DOCS + 6
    assert seen == [*texts[: timing.WARM_UP_DOCS], longest]
    seen.clear()
    run = task(1)
    assert not seen
    assert run() == 4 * len(texts) + 2
    assert seen == texts


@pytest.fixture(scope="module")
def sides(encoder: Path, docs: Path) -> dict[str, PipelineSide]:
    pytest.importorskip("spacy_transformers")
    return make_sides(encode.choose_rows("default,checkpointing", ROWS), docs, encoder)


def test_rivals_take_turns_next_to_each_other(sides: dict[str, PipelineSide]) -> None:
    assert [*sides] == [OURS, THEIRS, "gradient_checkpointing"]


def test_twin_sees_the_same_vectors(sides: dict[str, PipelineSide]) -> None:
    check_vectors(sides)
    ours = sides[OURS]
    weights = embeddings_of(ours)
    right = weights.copy()
    try:
        weights *= 2
        with pytest.raises(ValueError, match=f"{OURS} and of {THEIRS} differ"):
            check_vectors(sides)
    finally:
        weights[:] = right


def test_all_learn_the_same(sides: dict[str, PipelineSide]) -> None:
    """With the same start and the same batches, in float32 and without dropout, the pipes of all
    sides stay the same.
    """
    before = {name: weights_of_pipes(side) for name, side in sides.items()}
    encoders = {name: embeddings_of(side).copy() for name, side in sides.items()}
    for name in sides:
        assert np.array_equal(before[name], before[THEIRS])
    tasks = {name: timing.training(side) for name, side in sides.items()}
    for turn in (1, 2, 3):
        for task in tasks.values():
            assert task(turn)() == sum(len(example) for example in sides[OURS].examples)
    expected = weights_of_pipes(sides[THEIRS]) - before[THEIRS]
    # Adam changes a weight by about the learning rate in each step. An epoch has one step here.
    assert 2 * timing.LEARN_RATE < np.abs(expected).max() < 4 * timing.LEARN_RATE
    for name, side in sides.items():
        change = weights_of_pipes(side) - before[name]
        # Adam magnifies rounding errors if a gradient is nearly zero.
        differs = np.abs(change - expected) > 0.05 * timing.LEARN_RATE
        assert differs.mean() < 0.01, name
        learned = np.abs(embeddings_of(side) - encoders[name]).max()
        assert timing.LEARN_RATE < learned < 4 * timing.LEARN_RATE, name


def weights_of_pipes(side: PipelineSide) -> np.ndarray:
    """All weights of all pipes."""
    return np.concatenate(
        [
            node.get_param(parameter).ravel()
            for name in PIPES
            for node in side.nlp.get_pipe(name).model.walk()  # type: ignore[attr-defined]
            for parameter in node.param_names
        ]
    )


def embeddings_of(side: PipelineSide) -> np.ndarray:
    """Those of the encoder, (n_pieces, width): the weights themselves."""
    nlp: Any = side.nlp
    ours = nlp.get_pipe_meta(ENCODER).factory == ENCODER_FACTORY
    module: Any = torch_model_of(nlp) if ours else nlp.get_pipe(ENCODER).model.transformer
    return module.get_input_embeddings().weight.detach().numpy()


def test_batches_are_the_same_in_another_order_each_round(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nlp = spacy.blank("en")
    side = PipelineSide(nlp, make_examples(nlp, 400))
    seen: list[list[Example]] = []
    monkeypatch.setattr(nlp, "update", lambda batch, **kwargs: seen.append(batch))

    def epoch(turn: int) -> list[list[int]]:
        seen.clear()
        timing.training(side)(turn)()
        return [[side.examples.index(example) for example in batch] for batch in seen]

    first, again, second = epoch(1), epoch(1), epoch(2)
    assert first == again
    assert first != second
    assert sorted(i for batch in first for i in batch) == list(range(400)), "none is left out"
    words = [sum(len(side.examples[i]) for i in batch) for batch in first]
    assert max(words) <= 1200


def test_the_longest_doc_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = spacy.blank("en")
    examples = make_examples(nlp, 1000)
    long = Example.from_dict(nlp.make_doc("word " * 30), {})
    side = PipelineSide(nlp, [*examples, long])
    seen: list[list[Example]] = []
    monkeypatch.setattr(nlp, "update", lambda batch, **kwargs: seen.append(batch))
    task = timing.training(side)
    task(0)()
    assert len(seen) == timing.WARM_UP_BATCHES + 1
    assert long in seen[-1]
    seen.clear()
    task(1)()
    assert len(seen) > timing.WARM_UP_BATCHES + 1


# The whole


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_whole_run(encoder: Path, docs: Path, tmp_path: Path) -> None:
    pytest.importorskip("spacy_transformers")
    encode.main(docs, encoder, limit=N_SHOWN, repeats=1, threads=1, batch_size=8, output=tmp_path)
    saved = json.loads((tmp_path / "encode.json").read_text(encoding="utf-8"))
    assert saved["n_docs"] == N_SHOWN
    assert [*saved["encoding"]["seconds"]] == [OURS, THEIRS, "window = 192"]
    assert [*saved["training"]["seconds"]] == [OURS, THEIRS, *(row.title for row in ROWS[1:])]
    n_words = sum(map(len, list(DocBin().from_disk(docs).get_docs(spacy.vocab.Vocab()))[:N_SHOWN]))
    for part in (saved["encoding"], saved["training"]):
        assert part["words"] == [n_words]
        ratio = part["seconds"][THEIRS][0] / part["seconds"][OURS][0]
        assert part["ratio"][OURS]["median"] == pytest.approx(ratio)
        assert part["met"] == (ratio >= part["aim"])
    text = (tmp_path / "encode.md").read_text(encoding="utf-8")
    assert text.count(f"| {OURS} |") == 2
    assert text.count(f"| {THEIRS} |") == 2
    assert f"{N_SHOWN} documents of docs.spacy, {n_words} spaCy tokens" in text
    assert "| gradient_checkpointing |" in text


@pytest.mark.usefixtures("environment")
def test_says_what_to_install(
    encoder: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("spacy_transformers"):
        pytest.skip("spacy-transformers is installed")
    with pytest.raises(SystemExit):
        encode.main(docs, encoder, threads=1)
    assert "pip install 'spacy-distil[interop]'" in capsys.readouterr().out
