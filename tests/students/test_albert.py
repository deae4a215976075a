"""Students of ALBERT's form, against the forward pass of the teacher's own class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from transformers import AutoModel, PreTrainedModel

from spacy_distil.errors import ConfigError
from spacy_distil.export.families import build_graph, read_weights
from spacy_distil.export.graph import Precision
from spacy_distil.students.albert import Embeddings, factorize, read_embeddings
from spacy_distil.students.costs import encoder_size
from spacy_distil.students.families import BERT_FORM
from spacy_distil.students.flops import encoder_flops
from spacy_distil.students.making import make_student
from spacy_distil.students.shapes import choose_shape
from spacy_distil.students.teachers import Teacher
from tests.export.graphs import of_transformers, random_windows, run
from tests.students.test_making import (
    FFN,
    LAYERS,
    VOCAB,
    WIDTH,
    last_hidden,
    logits,
    random_importance,
    random_teacher,
)

each_family = pytest.mark.parametrize("family", BERT_FORM)


def embed(embeddings: Embeddings, ids: Tensor, epsilon: float) -> Tensor:
    """Compute what the layers get, from the first position on."""
    total = embeddings.pieces[ids] + embeddings.positions[: len(ids)] + embeddings.types[0]
    weight, bias = embeddings.norm_weight, embeddings.norm_bias
    normed = layer_norm(total, (total.shape[-1],), weight, bias, epsilon)
    return normed @ embeddings.projection.T + embeddings.bias


def long_window(vocab_size: int, length: int) -> Tensor:
    return torch.randint(5, vocab_size, (1, length), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def hidden_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    # Padding on the right, since positions of RoBERTa skip padding.
    pad = torch.full((len(ids), 3), int(model.config.pad_token_id))
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(pad)], dim=1)
    inputs = torch.cat([ids, pad], dim=1)
    hidden: Tensor = model.eval().base_model(input_ids=inputs, attention_mask=mask)[0]
    return hidden[:, : ids.shape[1]]


@each_family
@pytest.mark.parametrize("length", [1, 2, 9, 70])
def test_embeddings_of_the_same_size_are_exact(family: str, length: int) -> None:
    """Each layer has a group of its own, so that nothing but the form differs."""
    teacher = random_teacher(family, head=True)
    whole = read_embeddings(teacher.model.base_model).pieces.shape[1]
    ids = long_window(VOCAB, length)
    expected = hidden_of(make_student(teacher, range(LAYERS)), ids)
    shape = choose_shape(teacher.model.config, "all", embedding_size=whole)
    student = make_student(teacher, shape)
    assert student.config.model_type == "albert"
    assert (student.config.num_hidden_groups, student.config.embedding_size) == (LAYERS, whole)
    torch.testing.assert_close(hidden_of(student, ids), expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_whose_epsilon_matters() -> None:
    """Short rows, and normalizations with an epsilon as large as their variance."""
    teacher = random_teacher("bert", head=False, layer_norm_eps=0.05)
    with torch.no_grad():
        for name in ("word", "position", "token_type"):
            teacher.model.get_submodule(f"embeddings.{name}_embeddings").weight.mul_(0.5)
    shape = choose_shape(teacher.model.config, "all", embedding_size=WIDTH)
    expected = last_hidden(teacher.model)
    torch.testing.assert_close(
        last_hidden(make_student(teacher, shape)), expected, rtol=1e-4, atol=1e-4
    )


@each_family
def test_embeddings_of_low_rank_lose_nothing(family: str) -> None:
    """The teacher's centred tables have rank 5, so that 6 dimensions hold them."""
    teacher = random_teacher(family, head=False)
    generator = torch.Generator().manual_seed(2)
    encoder = teacher.model
    size = read_embeddings(encoder).pieces.shape[1]
    directions = torch.randn(5, size, generator=generator)
    with torch.no_grad():
        for name in ("word", "position", "token_type"):
            module: Any = dict(encoder.named_modules()).get(f"embeddings.{name}_embeddings")
            if module is not None:
                rows = torch.randn(len(module.weight), 5, generator=generator) @ directions
                module.weight.copy_(rows + torch.randn(len(rows), 1, generator=generator))
    expected = last_hidden(encoder)
    student = make_student(teacher, choose_shape(encoder.config, "all", embedding_size=6))
    assert student.get_input_embeddings().weight.shape == (VOCAB, 6)
    torch.testing.assert_close(last_hidden(student), expected, rtol=1e-3, atol=1e-3)
    worse = make_student(teacher, choose_shape(encoder.config, "all", embedding_size=5))
    assert (last_hidden(worse) - expected).abs().max() > 0.05


@torch.no_grad()
def test_the_basis_is_the_best_by_brute_force() -> None:
    """No other directions lose less of the pairs of piece and position, as often as they occur."""
    teacher = random_teacher("bert", head=False)
    whole = read_embeddings(teacher.model)
    counts = np.arange(VOCAB) ** 3
    smaller = factorize(whole, 9, counts)
    shares = torch.from_numpy(counts + 1.0)
    shares /= shares.sum()
    pairs = (whole.pieces[:, None] + whole.positions[None] + whole.types[0]).double()
    pairs -= pairs.mean(dim=-1, keepdim=True)
    weighted = pairs * (shares / pairs.shape[1]).sqrt()[:, None, None]
    values = torch.linalg.svdvals(weighted.flatten(0, 1))
    small = (smaller.pieces[:, None] + smaller.positions[None] + smaller.types[0]).double()
    small = small * (WIDTH / 9) ** 0.5
    kept = (small.square().sum(-1).mean(1) * shares).sum()
    assert kept == pytest.approx(values[:8].square().sum().item(), rel=1e-5)
    assert small.mean(-1).abs().max() < 1e-5
    unweighted = factorize(whole, 9)
    other = unweighted.pieces[:, None] + unweighted.positions[None] + unweighted.types[0]
    assert (other.square().sum(-1).mean(1) * shares).sum() * WIDTH / 9 < 0.99 * kept


@each_family
@pytest.mark.parametrize("head", [True, False])
def test_shared_layers_apply_the_lowest_one_again(family: str, head: bool) -> None:
    teacher = random_teacher(family, head=head)
    shape = choose_shape(teacher.model.config, [1, 2, 3], share_layers=True)
    student = make_student(teacher, shape)
    # The same by the teacher's own class: layer 1 three times.
    same = make_student(teacher, [1, 2, 3])
    weights = same.state_dict()
    for key in weights:
        for number in ("1", "2"):
            if f".layer.{number}." in key:
                weights[key] = weights[key.replace(f".layer.{number}.", ".layer.0.")]
    same.load_state_dict(weights)
    torch.testing.assert_close(last_hidden(student), last_hidden(same), rtol=1e-4, atol=1e-4)
    if head:
        torch.testing.assert_close(logits(student), logits(same), rtol=1e-4, atol=1e-3)
    assert (student.config.num_hidden_layers, student.config.num_hidden_groups) == (3, 1)
    assert all(parameter.requires_grad for parameter in student.parameters())
    copies = {value.data_ptr() for value in teacher.model.state_dict().values()}
    assert not copies & {value.data_ptr() for value in student.state_dict().values()}


def test_an_untied_decoder_stays_untied() -> None:
    teacher = random_teacher("bert", head=True, tie_word_embeddings=False)
    shape = choose_shape(teacher.model.config, [0], share_layers=True)
    student = make_student(teacher, shape)
    torch.testing.assert_close(
        logits(student), logits(make_student(teacher, [0])), rtol=1e-4, atol=1e-4
    )


@each_family
def test_a_cut_student_in_the_form_of_albert(family: str, tmp_path: Path) -> None:
    """Heads, neurons and width are cut first. Factorized embeddings have no masked-LM head."""
    teacher = random_teacher(family, head=True)
    config = teacher.model.config
    shape = choose_shape(
        config, [0, 2], width=16, heads=2, ffn=12, share_layers=True, embedding_size=6
    )
    student = make_student(teacher, shape, random_importance(), counts=np.ones(VOCAB, np.int64))
    assert student.get_output_embeddings() is None
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(last_hidden(loaded), last_hidden(student))
    files = {name: (tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    windows = random_windows(VOCAB, [1, 7, 12])
    torch.testing.assert_close(
        torch.from_numpy(run(build_graph(read_weights(files), Precision()), windows)),
        torch.from_numpy(of_transformers(tmp_path, windows)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("size", [None, 6])
def test_random_student_has_the_same_form(head: bool, size: int | None) -> None:
    teacher = random_teacher("roberta", head=head)
    shape = choose_shape(teacher.model.config, [0, 1], share_layers=True, embedding_size=size)
    made, drawn = (make_student(teacher, shape, start=start) for start in ("teacher", "random"))
    assert type(made) is type(drawn)
    weights, other = made.state_dict(), drawn.state_dict()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in other.items()}
    assert made.config.to_dict() == drawn.config.to_dict()
    key = next(k for k in weights if k.endswith("word_embeddings.weight"))
    assert not torch.isclose(weights[key][5:], other[key][5:]).any(dim=-1).all()


def test_costs_count_a_shared_layer_once() -> None:
    teacher = random_teacher("bert", head=False)
    config = teacher.model.config
    made = {
        n: make_student(
            teacher, choose_shape(config, "first", n, share_layers=True, embedding_size=6)
        )
        for n in (1, 3)
    }
    sizes = {n: encoder_size(student) for n, student in made.items()}
    assert sizes[1] == sizes[3]
    layer = 4 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH * FFN + FFN + WIDTH + 2 * 2 * WIDTH
    assert sizes[1].layers == layer + 6 * WIDTH + WIDTH
    assert sizes[1].embeddings == 6 * (VOCAB + 80 + 2 + 2)
    flops = {n: encoder_flops(student.config, 8) for n, student in made.items()}
    projection = 2 * 6 * WIDTH
    assert flops[3] - projection == 3 * (flops[1] - projection)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("mpnet", {"share_layers": True}, r"^student\.share_layers = true: .*'mpnet'.*bert, "),
        (
            "albert",
            {"share_layers": True, "embedding_size": 4},
            r"^student\.share_layers = true and student\.embedding_size = 4: .*'albert'",
        ),
        ("bert", {"embedding_size": 25}, r"^student\.embedding_size = 25: .*from 2 to 24, the w"),
        ("bert", {"embedding_size": 1}, r"^student\.embedding_size = 1: must be from 2 to 24"),
        ("electra", {"embedding_size": 11}, r"^student\.embedding_size = 11: .*from 2 to 10, "),
        ("bert", {"embedding_size": 20, "width": 16}, r"20: must be from 2 to 16"),
        ("bert", {"embedding_size": 25, "prefix": "--"}, r"^--embedding-size = 25: "),
        ("mpnet", {"share_layers": True, "prefix": "--"}, r"^--share-layers: a student of"),
    ],
)
def test_impossible_forms_are_refused(family: str, settings: dict[str, Any], message: str) -> None:
    teacher = random_teacher(family, head=False)
    with pytest.raises(ConfigError, match=message):
        choose_shape(teacher.model.config, "first", 2, **settings)


def test_relative_positions_are_refused() -> None:
    teacher: Teacher = random_teacher("bert", head=False)
    config = replace(teacher).model.config
    config.position_embedding_type = "relative_key"
    with pytest.raises(ConfigError, match=r"'bert' with 'relative_key' position embeddings"):
        choose_shape(config, share_layers=True)
