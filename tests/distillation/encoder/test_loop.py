"""Steps, logs and whole runs against the same training in plain torch, block by block."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.config import TrainingSettings, load_config
from spacy_distil.distillation.encoder.corpus import Blocks, Corpus, Mixture
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.loop import TrainingLoop
from spacy_distil.distillation.encoder.meter import Meter
from spacy_distil.distillation.encoder.objectives import (
    Cosine,
    HiddenStates,
    MaskedLM,
    Objective,
    Relations,
    SoftTargets,
    prepare_objectives,
)
from spacy_distil.distillation.encoder.shards import Shards, piece_type, write_shards
from spacy_distil.distillation.encoder.steps import EncoderStage, StepBlocks
from spacy_distil.distillation.encoder.trainer import Trainer
from spacy_distil.errors import ConfigError
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.making import make_student
from spacy_distil.students.masking import MaskedBatch, Masking, batch_blocks
from spacy_distil.students.shapes import choose_shape
from spacy_distil.students.teachers import Teacher, load_teacher
from tests.teachers import log_of

TeacherDir = Callable[..., Path]
N_BLOCKS, BLOCK_SIZE, PER_STEP = 7, 16, 5
SETTINGS = TrainingSettings(
    max_steps=5,
    learn_rate=0.02,
    weight_decay=0.1,
    clip=0.5,
    log_frequency=2,
    eval_frequency=100,
    checkpoint_frequency=100,
    tensorboard=False,
)
# Each begins with half of its learning rate, and ends with a third or half of it.
STAGES = [
    EncoderStage("all", ("soft", "mlm", "cosine", "hidden", "relations"), 0, 3, 0.02, 0.34),
    EncoderStage("last", ("soft", "cosine"), 3, 5, 0.01, 0.5),
]
RATES = [0.01, 0.02, 0.01, 0.005, 0.01]
WEIGHTS = {
    "soft": [5.0, 4.0, 3.0, 2.0, 1.0],
    "mlm": [2.0] * 5,
    "cosine": [1.0] * 5,
    "hidden": [0.5] * 5,
    "relations": [3.0] * 5,
}


def make_objectives() -> dict[str, Objective]:
    return {
        "soft": SoftTargets(WEIGHTS["soft"], temperature=2.0),
        "mlm": MaskedLM(2.0),
        "cosine": Cosine(1.0),
        "hidden": HiddenStates(0.5, layers=[[0, 0], [2, 3]]),
        "relations": Relations(3.0, layers=[[2, 4]], heads=2),
    }


class Plain:
    """The reference: every block by itself and without padding, all logits, one mean
    over all positions of a step, torch's own optimizer.
    """

    def __init__(self, teacher: Teacher, distiller: Distiller, blocks: StepBlocks) -> None:
        """distiller: before its training."""
        self.teacher = teacher.model
        self.student: PreTrainedModel = deepcopy(distiller.student)
        cosine, hidden = (deepcopy(distiller.objective(name)) for name in ("cosine", "hidden"))
        assert isinstance(cosine, Cosine)
        assert isinstance(hidden, HiddenStates)
        self.cosine, self.hidden = cosine.projection, hidden.projections
        self.blocks = blocks
        self.modules = torch.nn.ModuleList([self.student, self.cosine, self.hidden])
        parameters = list(self.modules.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim == 2], "weight_decay": 0.1},
                {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            eps=1e-8,
            foreach=False,
        )

    def step(self, step: int, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradient's norm and, by objective, the loss of each position."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        starts = self.blocks.starts
        places = range(*starts[step : step + 2])
        for place, number in zip(places, self.blocks.block_numbers(step), strict=True):
            losses = self.losses(self.masked(number, place))
            for name in names:
                found[name].append(losses[name])
        rows = {name: torch.cat(parts) for name, parts in found.items()}
        total = torch.stack([WEIGHTS[name][step] * r.mean() for name, r in rows.items()]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = RATES[step]
        self.optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 0.5)
        self.optimizer.step()
        return norm, {name: values.detach() for name, values in rows.items()}

    def masked(self, number: int, place: int) -> MaskedBatch:
        masking = self.blocks.masking
        pieces = self.blocks.blocks[[number]]
        return masking(batch_blocks(pieces, [place], pad_id=0, masking=masking))

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.teacher(input_ids=batch.inputs, output_hidden_states=True)
        own = self.student(input_ids=batch.inputs, output_hidden_states=True)
        p, q = (out.logits[0, batch.masked] for out in (target, own))
        softened = F.kl_div((q / 2).log_softmax(-1), (p / 2).softmax(-1), reduction="none")
        projected = self.cosine(own.hidden_states[-1][0])
        pairs = zip(self.hidden, [(0, 0), (2, 3)], strict=True)
        squares = [
            (project(own.hidden_states[a]) - target.hidden_states[b])[0].square().mean(-1)
            for project, (a, b) in pairs
        ]
        mine, other = (
            self.relations(model, out.hidden_states, layer)
            for model, out, layer in ((self.student, own, 2), (self.teacher, target, 4))
        )
        divergence = (other * (other.log() - mine.log())).sum(-1)  # (kinds, heads, pieces)
        return {
            "soft": 4 * softened.sum(-1),
            "mlm": F.cross_entropy(q, batch.labels, reduction="none"),
            "cosine": 1 - F.cosine_similarity(projected, target.hidden_states[-1][0], dim=-1),
            "hidden": sum(squares) / 2,
            "relations": divergence.mean((0, 1)),
        }

    @staticmethod
    def relations(model: PreTrainedModel, hidden: Sequence[Tensor], layer: int) -> Tensor:
        """(kinds, 2 heads, pieces, pieces)."""
        own = model.base_model.encoder.layer[layer - 1].attention.self
        found = []
        for linear in (own.query, own.key, own.value):
            vectors = linear(hidden[layer - 1])[0]
            heads = torch.stack(vectors.chunk(2, dim=-1))
            found.append((heads @ heads.mT / heads.shape[-1] ** 0.5).softmax(-1))
        return torch.stack(found)

    def state(self) -> dict[str, Tensor]:
        """By the names that the distiller has for them."""
        parts = {
            "student": self.student,
            "objectives.cosine.projection": self.cosine,
            "objectives.hidden.projections": self.hidden,
        }
        return {
            f"{p}.{k}": v for p, module in parts.items() for k, v in module.state_dict().items()
        }


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def prepare(
    teacher_dir: TeacherDir, directory: Path, dtype: torch.dtype
) -> tuple[Trainer, Plain, StepBlocks]:
    """A narrower student, so that there are projections; blocks of 16 pieces, the last of 9."""
    teacher = load_teacher(str(teacher_dir("bert", head=True)))
    shape = choose_shape(teacher.model.config, [0, 3], heads=1, width=8, ffn=12)
    teacher.model.config.hidden_dropout_prob = 0.0
    teacher.model.config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    student = make_student(teacher, shape, start="random")
    objectives = make_objectives()
    prepare_objectives(objectives, teacher.model.config, student.config)
    distiller = Distiller(teacher.model, student, objectives)
    for parameter in distiller.parameters():  # freshly initialized layers hardly change anything
        parameter.data += 0.2 * torch.randn_like(parameter)
    distiller.to(dtype)
    teacher.model.to(dtype)

    masking = Masking.for_tokenizer(teacher.tokenizer, 0.15, seed=0)
    random = np.random.default_rng(0)
    ends = teacher.tokenizer.cls_token_id, teacher.tokenizer.sep_token_id
    lengths = [BLOCK_SIZE] * (N_BLOCKS - 1) + [9]
    pieces = [[ends[0], *random.integers(5, 65, n - 2).tolist(), ends[1]] for n in lengths]
    directory.mkdir()
    counts = write_shards(pieces, directory, block_size=BLOCK_SIZE, dtype=piece_type(64))
    blocks = StepBlocks(
        Mixture({"": Blocks(Shards(directory, *counts), np.arange(N_BLOCKS))}),
        np.arange(0, 5 * PER_STEP + 1, PER_STEP),
        masking=masking,
        pad_id=0,
        seed=0,
        micro_batch=2,
    )
    plain = Plain(teacher, distiller, blocks)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return Trainer.prepare(distiller, SETTINGS, masking, accelerator), plain, blocks


def assert_same_weights(distiller: Distiller, plain: Plain, dtype: torch.dtype) -> None:
    found, expected = distiller.state_dict(), plain.state()
    assert found.keys() == expected.keys()
    # AdamW enlarges the rounding of gradients that should be zero, such as biases of keys.
    exact = dtype is torch.float64
    rtol, atol = (1e-6, 1e-7) if exact else (1e-3, 2e-3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


def test_steps_equal_plain_torch(
    teacher_dir: TeacherDir, tmp_path: Path, dtype: torch.dtype
) -> None:
    """A step of 2 + 2 + 1 blocks, one of them short, equals a step on all positions at once."""
    trainer, plain, blocks = prepare(teacher_dir, tmp_path / "blocks", dtype)
    trainer.distiller.train()
    before = {k: v.clone() for k, v in plain.state().items()}
    names = list(trainer.distiller.objectives)
    meter = Meter(names, torch.device("cpu"))
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    padded, clipped = 0, 0
    for step in range(3):
        batches = blocks[step]
        assert [len(batch.pieces) for batch in batches.micro_batches] == [2, 2, 1]
        padded += sum(batch.attention is not None for batch in batches.micro_batches)
        norm = trainer.step(step, batches, STAGES[0], meter)
        expected, losses = plain.step(step, STAGES[0].objectives)
        assert float(norm) == pytest.approx(float(expected), rel=1e-3)
        clipped += float(norm) > 0.5
        for name, values in losses.items():
            seen[name].append(values)
    assert padded
    assert clipped
    assert_same_weights(trainer.distiller, plain, dtype)
    for name, value in plain.state().items():
        if value.ndim == 2 and "embeddings" not in name:
            assert (value - before[name]).abs().max() > 0.01

    means, _ = meter.read(trainer.accelerator)
    assert means == pytest.approx(
        {k: float(torch.cat(v).mean()) for k, v in seen.items()}, rel=1e-3
    )
    # Then it starts again from zero.
    trainer.step(3, blocks[3], STAGES[1], meter)
    _, losses = plain.step(3, STAGES[1].objectives)
    means, _ = meter.read(trainer.accelerator)
    assert means == pytest.approx({k: float(v.mean()) for k, v in losses.items()}, rel=1e-3)


def test_a_run_in_stages_equals_plain_torch_and_logs_its_means(
    teacher_dir: TeacherDir, tmp_path: Path
) -> None:
    """Parameters of an objective do not change in a stage without it."""
    trainer, plain, blocks = prepare(teacher_dir, tmp_path / "blocks", torch.float64)
    loop = TrainingLoop(
        trainer,
        Corpus(blocks.blocks, Mixture({}), {}),
        blocks,
        STAGES,
        SETTINGS,
        checkpoints=Checkpoints(tmp_path / "checkpoints", keep=SETTINGS.keep_checkpoints),
        output=tmp_path,
        describe=str,
    )
    assert loop.run() == {}
    by_step = {}
    for step in range(5):
        stage = STAGES[step // 3]
        by_step[step + 1] = plain.step(step, stage.objectives)[1]
    assert_same_weights(trainer.distiller, plain, torch.float64)

    entries = log_of(tmp_path)
    # Every second step, and the last step of each stage.
    intervals = {2: [1, 2], 3: [3], 4: [4], 5: [5]}
    assert [(entry["step"], entry["stage"]) for entry in entries] == [
        (2, "all"),
        (3, "all"),
        (4, "last"),
        (5, "last"),
    ]
    for entry in entries:
        step = entry["step"]
        stage = STAGES[(step - 1) // 3]
        expected = {
            name: float(torch.cat([by_step[s][name] for s in intervals[step]]).mean())
            for name in stage.objectives
        }
        assert {name: entry.get(name) for name in WEIGHTS if name in entry} == pytest.approx(
            expected, rel=1e-5
        )
        total = sum(WEIGHTS[name][step - 1] * mean for name, mean in expected.items())
        assert entry["total"] == pytest.approx(total, rel=1e-5)
        assert entry["learn_rate"] == pytest.approx(RATES[step - 1])
        assert entry["pieces_per_second"] > 0


# Whole runs

COSINE = {"cosine": {"@distil_objectives": "spacy-distil.Cosine.v1"}}
MASKED_LM = {"masked_lm": {"@distil_objectives": "spacy-distil.MaskedLM.v1"}}


def config(
    teacher: Path, text: Path, objectives: dict[str, Any], **training: Any
) -> dict[str, dict[str, Any]]:
    quick = {
        "max_steps": 3,
        "batch_size": 4,
        "micro_batch": 4,
        "mixed_precision": "no",
        "tensorboard": False,
    }
    return {
        "teacher": {"name": str(teacher)},
        "student": {"n_layers": 2},
        "corpus": {
            "train": str(text),
            "block_size": 24,
            "dev_fraction": 0.1,
            "max_blocks": 40,
            "cache": str(text.parent / "cache"),
        },
        "objectives": objectives,
        "training": {**quick, **training},
    }


@pytest.mark.parametrize("name", ["values", "total", "step", "training"])
def test_an_objective_must_not_have_a_reserved_name(name: str) -> None:
    """Names of other log entries, and of attributes of torch modules."""
    settings = {"teacher": {"name": "x"}, "corpus": {"train": "x"}, "training": {"max_steps": 1}}
    with pytest.raises(ConfigError, match=rf"\[objectives\.{name}\]: .*such as {name}_loss"):
        load_config({**settings, "objectives": {name: COSINE["cosine"]}})


def test_dropout_is_a_function_of_the_seed(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path
) -> None:
    teacher = teacher_dir("bert", head=True)

    def student(name: str, *, dropout: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
        settings = config(teacher, text_file, COSINE, dropout=dropout, seed=seed)
        distil_encoder(settings, tmp_path / name, gpu_id=-1)
        return load_file(tmp_path / name / "model.safetensors")

    torch.manual_seed(1)
    first = student("first")
    torch.rand(100)  # other draws must not matter
    again = student("again")
    assert all(torch.equal(first[key], again[key]) for key in first)
    for other in (student("seed", seed=1), student("none", dropout=0.0)):
        assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_is_saved_with_the_teachers_dropout(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path, family: str
) -> None:
    """With any dropout in the run, and any name that a family has for it."""
    teacher = tmp_path / "teacher"
    model = AutoModelForMaskedLM.from_pretrained(teacher_dir(family, head=True))
    names = {
        "distilbert": ("dropout", "attention_dropout"),
        "": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    }
    hidden, attention = names.get(family, names[""])
    setattr(model.config, hidden, 0.07)
    setattr(model.config, attention, 0.04)
    model.save_pretrained(teacher)
    for file in teacher_dir(family, head=True).glob("*token*"):
        (teacher / file.name).write_bytes(file.read_bytes())
    students = []
    for dropout in (0.0, 0.3):
        output = tmp_path / f"out-{dropout}"
        settings = config(teacher, text_file, COSINE, dropout=dropout, max_steps=1)
        settings["corpus"]["dev_fraction"] = 0
        distil_encoder(settings, output, gpu_id=-1)
        saved = json.loads((output / "config.json").read_text())
        assert (saved[hidden], saved[attention]) == (0.07, 0.04)
        students.append(load_file(output / "model.safetensors"))
    # The dropout of the run made a difference.
    assert not all(torch.equal(students[0][key], students[1][key]) for key in students[0])


def test_batches_grow_by_a_schedule(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path
) -> None:
    ramp = {"@schedules": "compounding.v1", "start": 2, "stop": 8, "compound": 2.0}
    settings = config(
        teacher_dir("bert", head=True),
        text_file,
        COSINE,
        batch_size=ramp,
        max_steps=None,
        epochs=1,
        eval_frequency=1,
    )
    result = distil_encoder(settings, tmp_path / "out", gpu_id=-1)
    # 36 blocks to train on: 2 + 4 + 8 + 8 + 8 + 8.
    assert result.steps == 6
    assert [entry["step"] for entry in log_of(result.path, "held_out")] == list(range(7))
    resumed = distil_encoder(settings, tmp_path / "out", gpu_id=-1, resume=True)
    assert resumed == result


def test_a_second_stage_trains_a_head_that_the_teacher_does_not_have(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path
) -> None:
    settings = config(
        teacher_dir("bert", head=False),
        text_file,
        {**COSINE, **MASKED_LM},
        max_steps=6,
        log_frequency=100,
    )
    settings["stages"] = {
        "imitate": {"objectives": ["cosine"], "share": 1},
        "predict": {"objectives": ["masked_lm"], "share": 2},
    }
    result = distil_encoder(settings, tmp_path / "out", gpu_id=-1)
    first, second = log_of(result.path, "train")
    assert (first["step"], first["stage"]) == (2, "imitate")
    assert (second["step"], second["stage"]) == (6, "predict")
    assert "cosine" in first
    assert "masked_lm" not in first
    assert "masked_lm" in second
    assert "cosine" not in second
    # All objectives score held-out text. The teacher has no head to score.
    assert set(result.scores) == {"cosine", "masked_lm", "total", "student_accuracy"}
    model, report = AutoModelForMaskedLM.from_pretrained(result.path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = model.cls.predictions.transform.dense.weight
    assert 0 < (head - torch.eye(16)).abs().max() < 0.1  # where it began
