"""A student's costs, against models and graphs themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    ElectraConfig,
    MPNetConfig,
    PretrainedConfig,
)

from spacy_distil.export.families import build_graph, read_weights
from spacy_distil.export.graph import Precision
from spacy_distil.students.costs import cost_table, encoder_size, pieces_per_second
from spacy_distil.students.making import make_student
from spacy_distil.students.teachers import Teacher, load_teacher

SIZES = {
    "vocab_size": 3000,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}


@pytest.fixture
def teacher(teacher_dir: Callable[..., Path]) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SIZES),
        ElectraConfig(**SIZES, embedding_size=32),
        MPNetConfig(**SIZES),
        # Shared layers count once, in the graph, too.
        AlbertConfig(**SIZES, embedding_size=64),
    ],
    ids=["bert", "electra", "mpnet", "albert"],
)
def test_size_matches_files_and_graphs(config: PretrainedConfig, tmp_path: Path) -> None:
    bare = {} if config.model_type == "electra" else {"add_pooling_layer": False}
    model = AutoModel.from_config(config, **bare)
    size = encoder_size(model)
    assert size.embeddings == sum(p.numel() for p in model.embeddings.parameters())
    assert size.embeddings + size.layers == model.num_parameters()
    model.save_pretrained(tmp_path)
    saved = (tmp_path / "model.safetensors").stat().st_size
    assert size.n_bytes == pytest.approx(saved, rel=0.03)
    files = {name: (tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    precision = Precision(frozenset(range(2)), embeddings=True)
    graph = build_graph(read_weights(files), precision)
    assert size.int8_bytes == pytest.approx(len(graph), rel=0.06)


def test_masked_lm_head_does_not_count(teacher: Teacher) -> None:
    assert teacher.has_mlm_head
    assert encoder_size(teacher.model) == encoder_size(teacher.model.base_model)


def test_smaller_model_is_faster() -> None:
    config = BertConfig(**SIZES)
    model = AutoModel.from_config(config).eval()
    config = BertConfig(**SIZES | {"num_hidden_layers": 16})
    larger = AutoModel.from_config(config).eval()
    threads = torch.get_num_threads()
    speeds = pieces_per_second({"small": model, "large": larger}, length=64, threads=1)
    assert speeds["small"] > 2 * speeds["large"] > 0
    assert torch.get_num_threads() == threads


def test_table_compares_teacher_and_student(teacher: Teacher) -> None:
    student = make_student(teacher, [0]).eval()
    table = cost_table(teacher.model, student, pieces_per_word=2.0, threads=1)
    assert table.header == ["", "teacher", "student"]
    rows = {name: values for name, *values in table.rows}
    assert rows["layers"] == ["4", "1"]
    assert rows["heads x size"] == ["2 x 8", "2 x 8"]
    encoders = [model.base_model.num_parameters() for model in (teacher.model, student)]
    assert rows["parameters"] == [f"{count:,}" for count in encoders]
    # 2 x (4 x 16 x 16 + 2 x 16 x 32 + 2 x 32 x 16) in a layer and blocks of 32
    assert rows["MFLOP per piece, blocks of 32"] == ["0.02", "0.01"]
    pieces, words = (
        [float(value.replace(",", "")) for value in rows[name]]
        for name in ("pieces/s here", "words/s here")
    )
    assert words == pytest.approx([value / 2 for value in pieces], rel=0.01)
