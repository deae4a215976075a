"""The weights that a student starts with: copies of the teacher's, whole or cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from spacy_distil.errors import ConfigError
from spacy_distil.export.families import build_graph, read_weights
from spacy_distil.export.graph import Precision
from spacy_distil.students.families import CUTTABLE, FAMILIES
from spacy_distil.students.importance import Importance
from spacy_distil.students.making import make_student
from spacy_distil.students.masked_lm_heads import masked_lm_head
from spacy_distil.students.shapes import Shape, choose_shape, shape_of
from spacy_distil.students.teachers import Teacher
from tests.export.graphs import of_transformers, random_windows, run
from tests.teachers import tiny_tokenizer

WIDTH, HEADS, SIZE, FFN, LAYERS, VOCAB = 24, 6, 4, 40, 4, 70
each_family = pytest.mark.parametrize("family", FAMILIES)
each_cuttable = pytest.mark.parametrize("family", CUTTABLE)


def config_of(family: str, **changes: Any) -> Any:
    names = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": FFN}
    names["num_hidden_layers"] = LAYERS
    if family in ("electra", "albert"):
        names["embedding_size"] = 10
    names |= changes
    if family == "distilbert":
        names["hidden_dim"] = names.pop("intermediate_size")
    return AutoConfig.for_model(family, vocab_size=VOCAB, max_position_embeddings=80, **names)


def random_teacher(family: str, *, head: bool, **changes: Any) -> Teacher:
    """Make a teacher as after training: no bias is zero, no normalization the identity."""
    torch.manual_seed(3)
    config = config_of(family, **changes)
    if head:
        model = AutoModelForMaskedLM.from_config(config)
    else:
        model = AutoModel.from_config(
            config, **({} if family in ("distilbert", "electra") else {"add_pooling_layer": False})
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tokenizer = tiny_tokenizer(family)
    model = model.eval().requires_grad_(False)
    return Teacher("tiny", model, tokenizer, head, "", model.num_parameters(), len(tokenizer))


def random_importance(seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    return Importance(rand(LAYERS, HEADS), rand(LAYERS, FFN), rand(WIDTH), "cosine", 1)


def top(importance: Tensor, count: int) -> list[int]:
    values = importance.tolist()
    return sorted(sorted(range(len(values)), key=lambda i: -values[i])[:count])


def random_pieces() -> Tensor:
    return torch.randint(5, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def last_hidden(model: PreTrainedModel) -> Tensor:
    hidden: Tensor = model.eval().base_model(input_ids=random_pieces())[0]
    return hidden


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    output: Tensor = model.eval()(input_ids=random_pieces()).logits
    return output


OUT = ("attention.output.dense", "attention.out_lin", "attention.attn.o")
DOWN = ("ffn.lin2", "output.dense")


@contextmanager
def zeroed_inputs(
    model: PreTrainedModel, names: Sequence[str], columns: Sequence[Sequence[int]]
) -> Iterator[None]:
    """Zero inputs of one module per layer. names: of the module. columns: by layer."""
    modules = [
        module
        for name, module in model.named_modules()
        if name.endswith(tuple(names)) and (names is OUT or not name.endswith(OUT))
    ]
    assert len(modules) == len(columns)

    def hook(off: Sequence[int]) -> Callable[..., Any]:
        def zero(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            values = inputs[0].clone()
            values[..., list(off)] = 0
            return (values,)

        return zero

    handles = [
        module.register_forward_pre_hook(hook(off))
        for module, off in zip(modules, columns, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("settings", [{"heads": 3}, {"ffn": 7}, {"width": 16}])
def test_cutting_needs_importance(settings: dict[str, int]) -> None:
    teacher = random_teacher("bert", head=False)
    shape = choose_shape(teacher.model.config, **settings)
    with pytest.raises(ConfigError, match=r"student\.\w+ = \d+.*name a corpus"):
        make_student(teacher, shape)
    assert shape_of(make_student(teacher, shape, start="random").config) == shape.shape


@each_family
@pytest.mark.parametrize("head", [True, False])
def test_student_has_the_chosen_layers_of_the_teacher(family: str, head: bool) -> None:
    teacher = random_teacher(family, head=head)
    layers = [0, 3]
    student = make_student(teacher, layers)
    assert type(student) is type(teacher.model)
    assert student.config.num_hidden_layers == 2
    assert teacher.model.config.num_hidden_layers == LAYERS
    source, copy = teacher.model.state_dict(), student.state_dict()
    seen = set()
    for key, value in copy.items():
        parts = key.split(".")
        if "layer" in parts:
            place = parts.index("layer") + 1
            seen.add(int(parts[place]))
            parts[place] = str(layers[int(parts[place])])
        assert torch.equal(value, source[".".join(parts)]), key
        assert value.data_ptr() != source[".".join(parts)].data_ptr()
    assert seen == (set() if family == "albert" else {0, 1})
    # Embeddings and head are complete.
    assert {k for k in source if ".layer." not in k} == {k for k in copy if ".layer." not in k}
    assert not any("pooler" in key for key in copy)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(("layers", "groups"), [([0, 1], [0]), ([2], [1]), ([0, 2], [0, 1])])
def test_student_of_albert_has_the_groups_that_its_layers_share(
    layers: list[int], groups: list[int]
) -> None:
    teacher = random_teacher("albert", head=False, num_hidden_groups=2)
    student = make_student(teacher, layers)
    assert student.config.num_hidden_groups == len(groups)
    # The expected output, by the teacher's own modules.
    encoder = teacher.model.encoder
    with torch.no_grad():
        hidden = encoder.embedding_hidden_mapping_in(teacher.model.embeddings(random_pieces()))
        for layer in layers:
            hidden = encoder.albert_layer_groups[layer // 2].albert_layers[0](hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    torch.testing.assert_close(last_hidden(student), hidden, rtol=1e-4, atol=1e-5)


@each_family
def test_student_ties_its_decoder_as_the_teacher_does(family: str) -> None:
    student = make_student(random_teacher(family, head=True), [0])
    embeddings, decoder = student.get_input_embeddings(), student.get_output_embeddings()
    assert embeddings.weight is decoder.weight


@each_family
def test_student_of_the_whole_teacher_is_the_teacher(family: str) -> None:
    teacher = random_teacher(family, head=True)
    shape = choose_shape(teacher.model.config, "all", heads=HEADS, ffn=FFN, width=WIDTH)
    student = make_student(teacher, shape)
    assert torch.equal(logits(student), logits(teacher.model))


@each_cuttable
def test_dropping_heads_equals_zeroing_their_output(family: str) -> None:
    """The student's heads are twice as large. The new parts do not change its output."""
    teacher = random_teacher(family, head=True)
    importance = random_importance()
    shape = choose_shape(teacher.model.config, [0, 2, 3], heads=3)
    assert shape.shape.head_size == 2 * SIZE
    student = make_student(teacher, shape, importance)
    by_layer = importance.heads[list(shape.layers)]
    if family == "mpnet":  # its bias by distance has one row per head for all layers
        by_layer = by_layer.sum(dim=0, keepdim=True).expand(3, -1)
    kept = [top(heads, 3) for heads in by_layer]
    if family != "mpnet":
        assert kept[0] != kept[1] != kept[2]
    columns = [
        [head * SIZE + i for head in range(HEADS) if head not in layer_heads for i in range(SIZE)]
        for layer_heads in kept
    ]
    whole = make_student(teacher, shape.layers)
    before = logits(whole)
    with zeroed_inputs(whole, OUT, columns):
        expected = logits(whole)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits(student), expected, rtol=1e-4, atol=1e-4)


@each_cuttable
def test_dropping_neurons_equals_zeroing_their_output(family: str) -> None:
    teacher = random_teacher(family, head=True)
    importance = random_importance()
    shape = choose_shape(teacher.model.config, [1, 2], ffn=13)
    student = make_student(teacher, shape, importance)
    columns = []
    for layer in shape.layers:
        kept = top(importance.neurons[layer], 13)
        columns.append([neuron for neuron in range(FFN) if neuron not in kept])
    whole = make_student(teacher, shape.layers)
    before = logits(whole)
    with zeroed_inputs(whole, DOWN, columns):
        expected = logits(whole)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits(student), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family", [*CUTTABLE, "wide electra", *(f"untied {family}" for family in CUTTABLE)]
)
def test_narrower_student_has_the_rows_and_columns_of_kept_units(family: str) -> None:
    """An untied decoder is cut in the same way as the embeddings."""
    changes: dict[str, Any] = {"embedding_size": WIDTH} if family == "wide electra" else {}
    is_tied = not family.startswith("untied")
    changes |= {} if is_tied else {"tie_word_embeddings": False}
    family = family.split()[-1]
    teacher = random_teacher(family, head=True, **changes)
    importance = random_importance()
    shape = choose_shape(teacher.model.config, [1, 3], width=16, ffn=13)
    student = make_student(teacher, shape, importance)
    assert shape.heads == 4
    dims = top(importance.dims, 16)
    source = teacher.model.state_dict()
    n_cut = 0
    for key, actual in student.state_dict().items():
        parts = key.split(".")
        layer = 0
        if "layer" in parts:
            place = parts.index("layer") + 1
            layer = shape.layers[int(parts[place])]
            parts[place] = str(layer)
        by_layer = importance.heads[layer]
        if family == "mpnet":
            by_layer = importance.heads[list(shape.layers)].sum(dim=0)
        heads = top(by_layer, 4)
        slots = [head * SIZE + i for head in heads for i in range(SIZE)]
        neurons = top(importance.neurons[layer], 13)
        expected = source[".".join(parts)]
        # Sizes tell the axes apart, except for the axes of heads.
        for axis, size in enumerate(expected.shape):
            name = ".".join(parts[:-1])
            makes_heads = axis == 0 and name.endswith(
                ("query", "key", "value", "q_lin", "k_lin", "v_lin", "attn.q", "attn.k", "attn.v")
            )
            reads_heads = axis == 1 and name.endswith(OUT)
            if size == WIDTH:
                rows = slots if makes_heads or reads_heads else dims
            elif size == FFN:
                rows = neurons
            elif size == HEADS:
                rows = heads
            else:
                continue
            n_cut += 1
            expected = torch.stack([expected.select(axis, row) for row in rows], dim=axis)
        assert torch.equal(actual, expected), key
    assert n_cut > 2 * 20
    assert last_hidden(student).shape == (3, 9, 16)
    assert logits(student).shape == (3, 9, VOCAB)
    embeddings, decoder = student.get_input_embeddings(), student.get_output_embeddings()
    assert (embeddings.weight is decoder.weight) == is_tied
    assert torch.equal(embeddings.weight, decoder.weight) == is_tied


@pytest.mark.parametrize("family", [*CUTTABLE, "wide electra"])
def test_dropping_redundant_units_loses_nothing(family: str) -> None:
    """The teacher is a smaller model whose units are all doubled, and the copies are unread."""
    family, wide = family.split()[-1], "wide" in family
    small_sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
    small = random_teacher(
        family, head=False, **small_sizes, **({"embedding_size": 12} if wide else {})
    ).model
    teacher = random_teacher(family, head=False, **({"embedding_size": WIDTH} if wide else {}))
    weights = {}
    for key, value in small.state_dict().items():
        size = teacher.model.state_dict()[key].shape
        for axis in range(value.dim()):
            if value.shape[axis] != size[axis]:
                reads = axis == 1 and "embeddings." not in key and "bias." not in key
                value = torch.cat([value, torch.zeros_like(value) if reads else value], dim=axis)
        weights[key] = value
    teacher.model.load_state_dict(weights)
    expected = last_hidden(small)
    torch.testing.assert_close(last_hidden(teacher.model)[..., :12], expected, rtol=1e-4, atol=1e-4)
    first = Importance(
        heads=torch.arange(HEADS, 0, -1.0).expand(LAYERS, -1),
        neurons=torch.arange(FFN, 0, -1.0).expand(LAYERS, -1),
        dims=torch.arange(WIDTH, 0, -1.0),
        loss_kind="cosine",
        blocks=1,
    )
    shape = choose_shape(teacher.model.config, "all", width=12, ffn=20)
    student = make_student(teacher, shape, first)
    torch.testing.assert_close(last_hidden(student), expected, rtol=1e-4, atol=1e-4)


@each_cuttable
def test_new_parts_of_larger_heads_learn(family: str) -> None:
    teacher = random_teacher(family, head=False)
    shape = choose_shape(teacher.model.config, "all", heads=2)
    assert shape.shape.head_size == 12
    student = make_student(teacher, shape, random_importance()).eval()
    student(input_ids=random_pieces())[0].square().sum().backward()
    new = torch.arange(WIDTH).view(2, 12)[:, SIZE:].flatten()
    queries = outs = 0
    for name, parameter in student.named_parameters():
        if name.endswith(("query.weight", "q_lin.weight", "attn.q.weight")):
            queries += 1
            assert parameter.grad is not None
            assert bool((parameter.grad[new] != 0).all())
            assert bool((parameter[new] == 0).all())
        if name.endswith(tuple(f"{out}.weight" for out in OUT)):
            outs += 1
            assert parameter.grad is not None
            assert bool((parameter.grad[:, new] != 0).all())
    assert queries == outs == LAYERS


@each_cuttable
@pytest.mark.parametrize("head", [True, False])
def test_saved_student_is_an_ordinary_model(family: str, head: bool, tmp_path: Path) -> None:
    teacher = random_teacher(family, head=head)
    settings = {"width": 16, "heads": 2, "ffn": 13}
    shape = choose_shape(teacher.model.config, [0, 2], **settings)
    student = make_student(teacher, shape, random_importance())
    student.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not [key for key in report["missing_keys"] if "pooler" not in key]
    assert shape_of(loaded.config) == Shape(2, 2, 13, 16)
    assert torch.equal(last_hidden(loaded), last_hidden(student))
    if head:
        whole = AutoModelForMaskedLM.from_pretrained(tmp_path)
        assert torch.equal(logits(whole), logits(student))
        assert masked_lm_head(whole) is not None
    assert load_file(tmp_path / "model.safetensors").keys() <= student.state_dict().keys()


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "electra"])
def test_cut_student_becomes_a_graph(family: str, tmp_path: Path) -> None:
    teacher = random_teacher(family, head=False)
    shape = choose_shape(teacher.model.config, [0, 2], width=16, heads=2, ffn=12)
    student = make_student(teacher, shape, random_importance())
    student.save_pretrained(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    windows = random_windows(VOCAB, [1, 7, 12])
    actual = run(build_graph(read_weights(files), Precision()), windows)
    torch.testing.assert_close(
        torch.from_numpy(actual),
        torch.from_numpy(of_transformers(tmp_path, windows)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_random_student_has_only_the_shape_of_the_teacher() -> None:
    teacher = random_teacher("bert", head=True)
    student = make_student(teacher, [0, 1, 2, 3], start="random")
    same = make_student(replace(teacher), [0, 1, 2, 3])
    weights, copies = student.state_dict(), same.state_dict()
    assert weights.keys() == copies.keys()
    matrices = [key for key, weight in weights.items() if weight.ndim > 1]
    assert len(matrices) > 6 * LAYERS
    for key in matrices:
        assert not torch.isclose(weights[key], copies[key]).any(dim=-1).all(), key
