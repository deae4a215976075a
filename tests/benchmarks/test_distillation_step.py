"""The plain loop against ours, and the benchmark of the two."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from transformers import BertForMaskedLM
from typer.testing import CliRunner

import benchmarks.distillation_step.__main__ as distillation_step
from benchmarks.common.rounds import Rounds
from benchmarks.distillation_step.plain_loop import (
    BERT_SPECIAL,
    IGNORED,
    Masked,
    PlainLoop,
    PlainSettings,
    Special,
    deal_out,
    make_batches,
    make_rows,
    pad,
    padded_length,
)
from benchmarks.distillation_step.rows import OURS, PLAIN, ROWS, Device, Shape, Size
from benchmarks.distillation_step.sides import (
    OurSide,
    PositionCounts,
    make_config,
    make_ours,
    make_settings,
    make_sides,
    useful_flops,
    write_blocks,
)
from benchmarks.distillation_step.summary import COMMANDS, TARGETS, make_table, summarize
from benchmarks.distillation_step.text import (
    MEDIAN_PIECES,
    SIGMA,
    Packed,
    Text,
    pack_text,
    synthetic_text,
)
from benchmarks.distillation_step.timing import MatrixProducts, StepTimings, measure
from spacy_distil.distillation.encoder.config import load_config
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.students import masking
from spacy_distil.students.masking import MaskedBatch

DASH = "\N{EN DASH}"
SHAPE = Shape(teacher_layers=3, layers=2, width=32, length=32)
VOCABULARY = 200
NUMBERS = {"teacher-layers": 2, "layers": 1, "width": 16, "length": 32, "vocabulary": 200}
TINY = [str(each) for name, value in NUMBERS.items() for each in (f"--{name}", value)]
QUICK = [*TINY, "--blocks", "2", "--accumulate", "2", "--steps", "2", "--repeats", "2"]

app = typer.Typer()
app.command()(distillation_step.main)
pytestmark = pytest.mark.usefixtures("quick_collection", "environment")


def run(*args: object) -> Any:
    options = [str(arg) for arg in args]
    return CliRunner().invoke(app, ["--threads", "1", *options], catch_exceptions=False)


def make_model(layers: int, seed: int) -> Any:
    """Make a model. Its weights are far from their initial values, with which layers do little."""
    torch.manual_seed(seed)
    model = BertForMaskedLM(make_config(SHAPE, VOCABULARY, layers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def models() -> tuple[Any, Any]:
    """A teacher and a student."""
    teacher = make_model(SHAPE.teacher_layers, 1).eval().requires_grad_(False)
    return teacher, make_model(SHAPE.layers, 2)


def as_masked(batch: MaskedBatch) -> Masked:
    """Convert a batch that ours has masked for the plain loop."""
    labels = torch.full_like(batch.inputs, IGNORED).flatten()
    labels[batch.masked] = batch.labels
    attention = torch.ones_like(batch.inputs) if batch.attention is None else batch.attention
    return Masked(batch.inputs, attention, labels.view_as(batch.inputs))


def make_steps(models: tuple[Any, Any], size: Size, directory: Path, **settings: Any) -> OurSide:
    """Prepare ours on synthetic text. settings: of the soft targets."""
    text = synthetic_text(VOCABULARY, 5000)
    n_blocks = size.blocks * size.accumulate * size.steps
    packed = pack_text(text, SHAPE.length, n_blocks)
    source = make_settings(size, 2, bf16=False).source
    source["objectives"]["soft_targets"].update(settings)
    config = load_config(source)
    return make_ours(*models, write_blocks(packed, directory), packed, config, "cpu")


# The plain loop is an independent reference for our step


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_losses_are_those_of_the_plain_loop(
    models: tuple[Any, Any], positions: str, tmp_path: Path
) -> None:
    ours = make_steps(models, Size(4, 1, 1), tmp_path, positions=positions)
    pieces = ours.blocks.blocks[range(4)]
    cut = [piece[:length] for piece, length in zip(pieces, (32, 9, 20, 3), strict=True)]
    rows = masking.batch_blocks(cut, range(4), pad_id=0, masking=ours.trainer.masking)
    batch = ours.trainer.masking(rows)
    assert batch.attention is not None
    assert len(batch.masked) < batch.n_real < batch.inputs.numel()

    settings = PlainSettings(restrict_to_mask=positions == "masked")
    plain = PlainLoop(*models, special=BERT_SPECIAL, settings=settings)
    expected = plain.losses(as_masked(batch))
    with torch.no_grad():
        found = ours.trainer.distiller(batch).parts
    assert set(found) == set(expected) == {"soft_targets", "masked_lm", "cosine"}
    for name, loss in found.items():
        mean = loss.sum / loss.positions
        assert float(mean) == pytest.approx(expected[name].item(), rel=1e-5, abs=1e-6)
        assert float(mean) > 0.01
    plain.learn(as_masked(batch))
    means = {name: loss.sum / loss.positions for name, loss in found.items()}
    total = float(ours.trainer.distiller.total(means, 0))
    assert plain.last_losses["total"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_after_a_step_are_those_of_the_plain_loop(
    models: tuple[Any, Any], accumulate: int, tmp_path: Path
) -> None:
    # AdamW divides the gradient by its own size. In float32 the test would compare rounding errors
    # of gradients that are nearly zero.
    teacher, student = (model.double() for model in models)
    other = deepcopy(student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    ours = make_steps((teacher, student), Size(3, accumulate, 1), tmp_path)
    rows = ours.blocks[0]
    assert len(rows.micro_batches) == accumulate
    training = make_settings(Size(3, accumulate, 1), 2, bf16=False).training
    settings = PlainSettings(
        restrict_to_mask=True,
        learn_rate=ours.stage.rate(0),
        weight_decay=training.weight_decay,
        epsilon=1e-8,
        clip=training.clip,
    )
    plain = PlainLoop(teacher, other, special=BERT_SPECIAL, settings=settings)
    for portion in rows.micro_batches:
        plain.learn(as_masked(ours.trainer.masking(portion)), share=1 / accumulate)
    plain.update()
    ours.trainer.step(0, rows, ours.stage)

    expected = other.state_dict()
    changed = 0.0
    for name, value in student.state_dict().items():
        step = (expected[name] - before[name]).abs().max()
        changed = max(changed, float(step))
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-3 * settings.learn_rate)
    assert changed > 0.5 * settings.learn_rate


def test_a_round_of_ours_goes_through_all_blocks_once(
    models: tuple[Any, Any], tmp_path: Path
) -> None:
    ours = make_steps(models, Size(2, 2, 3), tmp_path)
    before = deepcopy(models[1].state_dict())
    for turn in range(2):
        steps = range(3 * turn, 3 * turn + 3)
        numbers = [n for step in steps for n in ours.blocks.block_numbers(step)]
        assert sorted(numbers) == list(range(12))
        assert ours.process(turn) == PositionCounts(12 * 32, 12 * 32)
    assert ours.lengths == [32] * 12
    after = models[1].state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in after if "weight" in name)


# The plain loop by itself


def documents(*lengths: int) -> list[np.ndarray]:
    return [np.full(length, 110 + number) for number, length in enumerate(lengths)]


def test_rows_are_cut_and_nothing_is_lost() -> None:
    special = Special(pad=0, first=101, last=102, mask=103)
    text = np.arange(110, 135)
    rows = make_rows([text, text[:4]], 12, special)
    assert [len(row) for row in rows] == [12, 12, 7, 6]
    assert all((row[0], row[-1]) == (101, 102) for row in rows)
    assert np.concatenate([row[1:-1] for row in rows]).tolist() == [*text, *text[:4]]


def test_batches_hold_each_row_once_and_those_grouped_by_length_less_padding() -> None:
    rng = np.random.default_rng(0)
    rows = make_rows(documents(*rng.integers(1, 60, size=50)), 64, BERT_SPECIAL)
    padding = {}
    for by_length in (False, True):
        found = make_batches(rows, 4, seed=1, by_length=by_length)
        assert sorted(map(id, chain(*found))) == sorted(map(id, rows))
        assert sorted(map(len, found)) == [2] + [4] * 12
        padding[by_length] = sum(padded_length(b, bf16=False) * len(b) for b in found)
        other = make_batches(rows, 4, seed=2, by_length=by_length)
        assert [list(map(id, b)) for b in found] != [list(map(id, b)) for b in other]
    real = sum(map(len, rows))
    assert padding[True] < 1.15 * real
    assert padding[False] > 1.4 * real


@pytest.mark.parametrize("n_batches", [7, 3, 1])
def test_batches_are_dealt_out_evenly(n_batches: int) -> None:
    found = make_batches(make_rows(documents(*[3] * n_batches), 8, BERT_SPECIAL), 1, seed=0)
    dealt = list(deal_out(found, 3))
    assert list(chain(*dealt)) == found
    sizes = [len(of_step) for of_step in dealt]
    assert len(sizes) == min(3, n_batches)
    assert max(sizes) - min(sizes) <= 1


def test_padding_is_to_the_longest() -> None:
    rows = make_rows(documents(3, 7), 32, BERT_SPECIAL)
    assert padded_length(rows, bf16=False) == 9
    assert padded_length(rows, bf16=True) == 16
    pieces, lengths = pad(rows, 9, 0)
    assert pieces.tolist() == [
        [101, 110, 110, 110, 102, 0, 0, 0, 0],
        [101, *[111] * 7, 102],
    ]
    assert lengths.tolist() == [5, 9]


def test_masks_are_drawn_from_ordinary_pieces(models: tuple[Any, Any]) -> None:
    plain = PlainLoop(*models, special=BERT_SPECIAL)
    rng = np.random.default_rng(0)
    texts = [rng.integers(110, VOCABULARY, size=length) for length in (30, 5) * 200]
    rows = make_rows(texts, 32, BERT_SPECIAL)
    pieces, lengths = pad(rows, 32, 0)
    torch.manual_seed(0)
    inputs, attention, labels = plain.mask(pieces, lengths)
    chosen: Tensor = labels != IGNORED
    assert int(chosen.sum()) == np.ceil(0.15 * sum(map(len, rows)))
    assert torch.equal(labels[chosen], pieces[chosen])
    assert torch.equal(inputs[~chosen], pieces[~chosen])
    assert attention.sum(1).tolist() == lengths.tolist()
    assert not set(pieces[chosen].tolist()) & set(BERT_SPECIAL)
    masked = (inputs[chosen] == BERT_SPECIAL.mask).float().mean()
    kept = (inputs[chosen] == pieces[chosen]).float().mean()
    assert float(masked) == pytest.approx(0.8, abs=0.04)
    assert float(kept) == pytest.approx(0.1, abs=0.04)


def test_a_step_of_the_plain_loop_learns(models: tuple[Any, Any]) -> None:
    plain = PlainLoop(*models, special=BERT_SPECIAL)
    found = make_batches(make_rows(documents(*[12] * 8), 32, BERT_SPECIAL), 4, seed=0)
    torch.manual_seed(0)
    totals = []
    for _ in range(40):
        plain.step(found)
        totals.append(plain.last_losses["total"])
    assert totals[-1] < 0.9 * totals[0]
    assert plain.total_loss > sum(totals)  # of both batches of each step


def test_no_number_stops_the_plain_loop(models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        models[1].bert.embeddings.word_embeddings.weight[110] = torch.nan
    plain = PlainLoop(*models, special=BERT_SPECIAL)
    with pytest.raises(ValueError, match="not a number"):
        plain.step([make_rows(documents(12), 32, BERT_SPECIAL)])


# Text


def test_both_have_the_same_text() -> None:
    packed = pack_text(synthetic_text(VOCABULARY, 4000), 32, 100)
    assert [len(block) for block in packed.blocks] == [32] * 100
    text = [piece for block in packed.blocks for piece in block if piece not in (101, 102)]
    assert text == np.concatenate(packed.documents).tolist()
    assert packed.n_pieces == len(text)
    assert 100 * 28 < len(text) < 100 * 30


def test_too_little_text_is_an_error() -> None:
    text = Text("a note", documents(40), VOCABULARY, BERT_SPECIAL)
    assert len(pack_text(text, 12, 4).blocks) == 4  # 40 pieces, 10 a block
    with pytest.raises(CorpusError, match="a note: 40 pieces are too few for 5 blocks of 12"):
        pack_text(text, 12, 5)


def test_lengths_of_synthetic_text_are_log_normal() -> None:
    lengths = np.log([len(d) for d in synthetic_text(VOCABULARY, 400_000).documents])
    assert np.exp(np.median(lengths)) == pytest.approx(MEDIAN_PIECES, rel=0.1)
    assert lengths.std() == pytest.approx(SIGMA, rel=0.1)


# Arithmetic


def test_useful_operations_of_bert_base() -> None:
    """By hand: a layer has 12 matrices of width^2, attention 2 products of length x width."""
    useful = useful_flops(Shape(12, 6, 768, 512), 30522)
    layer = 2 * (12 * 768**2 + 2 * 512 * 768)
    head = 2 * (768**2 + 768 * 30522)
    assert useful(512) == pytest.approx((12 + 3 * 6) * layer + 0.15 * (1 + 3) * head)
    assert useful(512) / 1e6 == pytest.approx(501, abs=1)
    assert useful(100) < useful(512)


def test_products_are_those_of_a_layer() -> None:
    matmul = MatrixProducts("cpu", bf16=False, width=16, positions=10)
    assert matmul.flops == 2 * 10 * 12 * 16**2
    assert matmul.rate() > 0


TIMINGS = StepTimings(
    Rounds({OURS: [1.0, 2.0, 4.0], PLAIN: [3.0, 4.0, 9.0]}, [12, 12, 12]),
    {OURS: PositionCounts(40, 40), PLAIN: PositionCounts(40, 25)},
    {OURS: [4, 4], PLAIN: [1, 3]},
    [80.0, 100.0],
)


def summary(device: Device) -> dict[str, Any]:
    found = summarize(TARGETS[device], TIMINGS, lambda length: 2.0 * length)
    about = {
        "device": "H200" if device == "gpu" else None,
        "precision": "float32",
        "threads": 2,
        "shape": asdict(SHAPE),
        "size": asdict(Size(4, 2, 3)),
        "text": "a note",
        "documents": 1,
        "pieces": 12,
    }
    return {**about, **json.loads(json.dumps(found))}


def test_ratio_utilization_and_padding() -> None:
    found = summary("cpu")
    # 3, 2 and 2.25; the ratio of the medians would be 2.
    assert found["ratio"] == {OURS: {"median": 2.25, "min": 2.0, "max": 3.0}}
    assert found["pieces_per_second"][OURS] == {"median": 6.0, "min": 3.0, "max": 12.0}
    # One of 4 pieces is in a row of length 1, three are in a row of length 3.
    assert found["flops_per_piece"] == {OURS: 8.0, PLAIN: (1 * 2 + 3 * 6) / 4}
    assert found["utilization"][OURS] == {"median": 0.48, "min": 0.24, "max": 0.96}
    assert found["utilization"][PLAIN]["median"] == pytest.approx(3 * 5 / 100)
    assert found["padding"] == {OURS: 0.0, PLAIN: 0.375}
    assert found["met"] == {"ratio": True, "utilization": None}
    gpu = summarize(TARGETS["gpu"], TIMINGS, lambda length: 2.0 * length)
    assert gpu["met"] == {"ratio": False, "utilization": True}
    slower = replace(TIMINGS, matmul=[121.0])
    assert (
        summarize(TARGETS["gpu"], slower, lambda length: 2.0 * length)["met"]["utilization"]
        is False
    )


def test_table() -> None:
    rows = make_table({"cpu": summary("cpu"), "gpu": summary("gpu")}).rows
    speed, ratio = f"6 (3{DASH}12)", f"2.25 (2.00{DASH}3.00)"
    used = f"48.0 (24.0{DASH}96.0)"
    assert rows[0] == [f"CPU: {OURS}", speed, ratio, "1.5", "yes", used, "", "", "0.0"]
    assert rows[1][:2] == [f"CPU: {PLAIN}", f"3 (1{DASH}4)"]
    assert rows[1][2:5] == ["", "", ""]
    assert rows[1][-1] == "37.5"
    assert rows[2] == [f"GPU: {OURS}", speed, ratio, "3", "no", used, "40", "yes", "0.0"]
    missing = make_table({"cpu": summary("cpu"), "gpu": None}).rows
    assert missing[:2] == rows[:2]
    assert missing[2] == [f"GPU: `{COMMANDS['gpu']}`", "not yet measured", *[""] * 7]


def test_without_the_plain_loop_no_verdict_is_given() -> None:
    alone = replace(TIMINGS, rounds=Rounds({OURS: [1.0]}, [12]), lengths={OURS: [4]})
    found = summarize(TARGETS["cpu"], alone, lambda length: 2.0 * length)
    assert found["ratio"] == {}
    assert found["met"]["ratio"] is None


def test_rounds_take_turns() -> None:
    gone: list[tuple[str, int]] = []

    class Side:
        def __init__(self, name: str) -> None:
            self.name = name
            self.lengths = [3]

        def process(self, turn: int) -> PositionCounts:
            gone.append((self.name, turn))
            return PositionCounts(5, 3)

    sides = {name: Side(name) for name in "ab"}
    found = measure(sides, 3, lambda: 1.0, 2, log=lambda message: None)
    assert gone == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert found.positions == {name: PositionCounts(10, 6) for name in "ab"}  # not of the warm-up
    assert [len(seconds) for seconds in found.rounds.seconds.values()] == [2, 2]
    assert found.rounds.words == [3, 3]
    assert found.matmul == [1.0, 1.0]


def test_rows_learn_what_they_say(tmp_path: Path) -> None:
    packed = pack_text(synthetic_text(VOCABULARY, 500), SHAPE.length, 4)
    rows = distillation_step.choose_rows("ours,all,plain,masked,ungrouped", ROWS)
    sides = make_sides(
        rows, packed, SHAPE, Size(2, 1, 2), tmp_path, device="cpu", bf16=False, rounds=1
    )
    found = {}
    for row in rows:
        side: Any = sides[row.title]
        if isinstance(side, OurSide):
            soft_targets: Any = side.trainer.distiller.objectives["soft_targets"]
            found[row.key] = (soft_targets.positions, None)
        else:
            restricted = side.loop.settings.restrict_to_mask
            found[row.key] = ("masked" if restricted else "all", side.by_length)
    assert found == {
        "ours": ("masked", None),
        "all": ("all", None),
        "plain": ("all", True),
        "masked": ("masked", True),
        "ungrouped": ("all", False),
    }


# The command


def test_the_command_measures_both_and_saves(tmp_path: Path) -> None:
    rows = [row for row in ROWS if not row.compiled]
    result = run("--cpu", *QUICK, "--rows", ",".join(row.key for row in rows), "--output", tmp_path)
    assert result.exit_code == 0
    saved = json.loads((tmp_path / "distillation_step.json").read_text())
    assert saved["gpu"] is None
    cpu = saved["cpu"]
    assert list(cpu["seconds"]) == [row.title for row in rows]
    assert all(len(seconds) == 2 for seconds in cpu["seconds"].values())
    packed: Packed = pack_text(synthetic_text(200, 8 * 32), 32, 8)
    assert cpu["words"] == [packed.n_pieces] * 2
    assert cpu["padding"][OURS] == 0
    ungrouped = next(row.title for row in ROWS if row.key == "ungrouped")
    assert cpu["padding"][ungrouped] >= cpu["padding"][PLAIN] > 0
    assert cpu["utilization"][OURS]["median"] == pytest.approx(
        cpu["pieces_per_second"][OURS]["median"]
        * useful_flops(Shape(2, 1, 16, 32), 200)(32)
        / max(cpu["matmul_flops_per_second"])
    )
    text = (tmp_path / "distillation_step.md").read_text()
    assert f"| CPU: {OURS} | " in text
    assert f"| GPU: `{COMMANDS['gpu']}` | not yet measured | " in text
    assert "median 180 pieces" in text
    assert f"{packed.n_pieces} pieces, which fill 8 blocks of 32" in text
    assert f"CPU: {OURS}" in result.output


@pytest.mark.slow
def test_the_compiled_row_is_measured(tmp_path: Path) -> None:
    assert run("--cpu", *QUICK, "--rows", "compiled", "--output", tmp_path).exit_code == 0
    cpu = json.loads((tmp_path / "distillation_step.json").read_text())["cpu"]
    (seconds,) = cpu["seconds"].values()
    assert len(seconds) == 2
    assert cpu["rows"][0]["compiled"] is True
    assert cpu["padding"] == {f"{OURS}, compiled": 0}


def test_results_of_a_gpu_stay(tmp_path: Path) -> None:
    on_gpu = {**summary("gpu"), "date": "2026-01-02", "command": "x"}
    on_gpu["machine"] = {
        "cpu": "Some CPU",
        "cores": 8,
        "logical_cores": 16,
        "memory_bytes": 2**35,
        "system": "Linux",
        "python": "3.11",
        "versions": {},
    }
    (tmp_path / "distillation_step.json").write_text(json.dumps({"cpu": None, "gpu": on_gpu}))
    assert run("--cpu", *QUICK, "--rows", "ours,plain", "--output", tmp_path).exit_code == 0
    saved = json.loads((tmp_path / "distillation_step.json").read_text())
    assert saved["gpu"] == on_gpu
    assert saved["cpu"]["size"] == {"blocks": 2, "accumulate": 2, "steps": 2}
    text = (tmp_path / "distillation_step.md").read_text()
    assert f"| GPU: {OURS} | 6 (3{DASH}12) | " in text
    assert "GPU: H200, float32" in text
    assert "Measured on Some CPU, 8 cores" in text
    assert "not yet measured" not in text


def test_real_text_and_half_precision(bert_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": "the quick brown fox " * n}) for n in range(1, 30)]
    file.write_text("\n".join(lines), encoding="utf-8")
    options = ("--text", file, "--tokenizer", bert_dir, "--precision", "bf16")
    result = run("--cpu", *QUICK, *options, "--rows", "ours,plain", "--output", tmp_path)
    assert result.exit_code == 0
    cpu = json.loads((tmp_path / "distillation_step.json").read_text())["cpu"]
    assert cpu["text"] == "texts.jsonl"
    assert cpu["precision"] == "bf16"
    assert 1 < cpu["documents"] < 29
    assert 8 * 24 < cpu["pieces"] <= 8 * 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "ours,theirs"], "expected some of ours, compiled, all, plain"),
        (["--precision", "int8"], "'int8': expected auto, float32 or bf16"),
        pytest.param(
            ["--gpu"],
            "sees no CUDA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_options_are_errors(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--cpu", *options, "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_auto_precision() -> None:
    assert distillation_step.choose_precision("auto", "gpu")
    assert not distillation_step.choose_precision("auto", "cpu")
    assert distillation_step.choose_precision("bf16", "cpu")
    with pytest.raises(ConfigError):
        distillation_step.choose_precision("fp16", "gpu")
