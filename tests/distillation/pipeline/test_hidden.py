"""Hidden states against transformers' own, pooled by a loop, and against torch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import NumpyOps
from tokenizers import Tokenizer

from spacy_distil.distillation.pipeline.heads.base import Field
from spacy_distil.distillation.pipeline.hidden import (
    HiddenStates,
    find_encoder,
    make_projections,
    teacher_encoder,
    update_encoder,
)
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision
from tests.util import (
    LAYERS,
    SENTENCES,
    WIDTH,
    adam,
    encoder_of,
    make_nlp,
    same,
    torch_model_of,
    weights_of,
    write_encoder,
)

TEACHER_WIDTH, TEACHER_LAYERS = 48, 3
# Docs with tokens that have no piece, and without tokens.
TEXTS = (SENTENCES[0], "", "a   b", "  ", SENTENCES[3])


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of three layers: wider than the student, with a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("teacher") / "roberta"
    return write_encoder(path, "roberta", width=TEACHER_WIDTH, layers=TEACHER_LAYERS, seed=7)


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of the student's shape and of other weights."""
    return write_encoder(tmp_path_factory.mktemp("teacher") / "bert", "bert", seed=7)


def component(nlp: Any) -> Any:
    return nlp.get_pipe("transformer")


def docs_of(nlp: Any, texts: Sequence[str] = TEXTS) -> list[Doc]:
    return [nlp.make_doc(text) for text in texts]


def examples_of(nlp: Any, texts: Sequence[str] = TEXTS) -> list[Example]:
    return [Example(doc, doc.copy()) for doc in docs_of(nlp, texts)]


def naive_vectors(directory: Path, model: Any, docs: Sequence[Doc], layer: int) -> torch.Tensor:
    """Token vectors of a layer, (n_tokens of all docs, width): doc by doc without padding, token by
    token, piece by piece.
    """
    raw = Tokenizer.from_file(str(directory / "tokenizer.json"))
    vectors = []
    for doc in docs:
        encoding = raw.encode(doc.text)
        states = model(
            input_ids=torch.tensor([encoding.ids]), output_hidden_states=True
        ).hidden_states
        for token in doc:
            pieces = [
                states[layer][0, i]
                for i, (start, end) in enumerate(encoding.offsets)
                if max(start, token.idx) < min(end, token.idx + len(token))
            ]
            zero = torch.zeros(states[layer].shape[-1])
            vectors.append(torch.stack(pieces).mean(0) if pieces else zero)
    return torch.stack(vectors)


# Recording


@pytest.mark.parametrize(
    "layers", [[(2, 3)], [(1, 0), (2, 2), (2, 3)], [(1, 3), (2, 3)], [(2, 3), (0, 1), (1, 1)]]
)
def test_what_is_recorded_is_what_transformers_says(
    bert_dir: Path, wide_dir: Path, layers: list[tuple[int, int]]
) -> None:
    student, teacher = make_nlp(bert_dir), make_nlp(wide_dir)
    hidden = HiddenStates(component(student), component(teacher), layers)
    recorded = sorted({other for _, other in layers})
    assert hidden.source == f"layers {str(recorded)[1:-1]} of 'transformer'"
    width = len(recorded) * TEACHER_WIDTH
    assert hidden.fields == {"vectors": Field("token", width, "float16")}
    docs = docs_of(teacher)
    vectors = hidden.record(docs)["vectors"]
    assert [each.shape for each in vectors] == [(len(doc), width) for doc in docs]
    assert {(type(each), each.dtype.name) for each in vectors} == {(np.ndarray, "float16")}
    assert not any(doc.tensor.size for doc in docs)
    reference = transformers.AutoModel.from_pretrained(wide_dir).eval()
    with torch.no_grad():
        expected = [naive_vectors(wide_dir, reference, docs, layer) for layer in recorded]
    np.testing.assert_allclose(
        np.concatenate(vectors), torch.cat(expected, dim=1), rtol=1e-3, atol=1e-3
    )
    assert not np.concatenate(vectors)[[token.is_space for doc in docs for token in doc]].any()


def test_a_tensor_that_is_there_already_is_taken(bert_dir: Path) -> None:
    student, teacher = make_nlp(bert_dir), make_nlp(bert_dir)
    docs = docs_of(teacher)
    computed = HiddenStates(component(student), component(teacher), [(2, 2)]).record(docs)
    for doc in docs:
        doc.tensor = np.full((len(doc), WIDTH), 1e6, dtype="f")
    for layers in ([(2, 2)], [(1, 2), (2, 2)]):
        hidden = HiddenStates(component(student), component(teacher), layers)
        for doc, vectors in zip(docs, hidden.record(docs)["vectors"], strict=True):
            assert vectors.shape == (len(doc), WIDTH)
            assert (vectors == 65504).all()  # the largest float16
    # Not where inner layers are asked for, nor of a doc that has none, or one of another width.
    inner = HiddenStates(component(student), component(teacher), [(1, 1), (2, 2)]).record(docs)
    docs[0].tensor = docs[0].tensor[:, :5]
    docs[2].tensor = None
    again = HiddenStates(component(student), component(teacher), [(2, 2)]).record(docs)
    for i, vectors in enumerate(computed["vectors"]):
        np.testing.assert_array_equal(inner["vectors"][i][:, WIDTH:], vectors)
        if i in (0, 2):
            np.testing.assert_allclose(again["vectors"][i], vectors, rtol=0, atol=2e-3)
        else:
            assert (again["vectors"][i] == 65504).all()


@pytest.mark.parametrize("layers", [[(2, 3)], [(1, 1), (2, 3)]])
def test_all_docs_are_copied_from_the_device_at_once(
    bert_dir: Path, wide_dir: Path, layers: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy from a GPU waits for it. The records do not keep one another in memory."""
    student, teacher = make_nlp(bert_dir), make_nlp(wide_dir)
    hidden = HiddenStates(component(student), component(teacher), layers)
    copies: list[int] = []
    to_numpy = NumpyOps.to_numpy

    def counted(ops: NumpyOps, array: Any, **options: Any) -> Any:
        copies.append(len(array))
        return to_numpy(ops, array, **options)

    docs = docs_of(teacher)
    for doc in teacher.pipe(docs):
        assert len(doc.tensor) == len(doc)
    monkeypatch.setattr(NumpyOps, "to_numpy", counted)
    vectors = hidden.record(docs)["vectors"]
    assert copies == [sum(map(len, docs))]
    assert all(each.base is None for each in vectors)
    assert hidden.record([]) == {"vectors": []}


def test_an_onnx_teacher_has_its_last_layer_to_teach(bert_dir: Path, other_dir: Path) -> None:
    student, teacher = make_nlp(bert_dir), make_nlp(other_dir)
    docs = docs_of(teacher)
    expected = HiddenStates(component(student), component(teacher), [(1, 2)]).record(docs)
    shim = SourceEncoder(encoder_of(teacher)).to_shim(Precision())
    component(teacher).model.shims[0] = shim
    found = HiddenStates(component(student), component(teacher), [(1, 2)]).record(docs)
    for left, right in zip(found["vectors"], expected["vectors"], strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=5e-3)
    with pytest.raises(ConfigError, match=r"layers asks for layers \[1, 2\].*engine = 'onnx'"):
        HiddenStates(component(student), component(teacher), [(1, 1), (2, 2)])


# Learning


def linear_of(projection: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a projection, as leaves."""
    return tuple(torch.tensor(projection.get_param(n), requires_grad=True) for n in ("W", "b"))


@pytest.mark.parametrize("wide", [False, True], ids=["same-width", "projected"])
@pytest.mark.parametrize("head", ["none", "active", "silent"])
@pytest.mark.parametrize(
    "layers",
    [[(2, 2)], [(0, 1), (1, 0), (1, 2)], [(2, 2), (1, 1), (0, 2)]],
    ids=["last", "inner", "shared"],
)
def test_gradients_are_those_of_autograd(
    bert_dir: Path,
    wide_dir: Path,
    other_dir: Path,
    wide: bool,
    head: str,
    layers: list[tuple[int, int]],
) -> None:
    """The loss is written out for torch, token by token, beside the loss of a tagger."""
    student = make_nlp(bert_dir, [] if head == "none" else ["tagger"])
    teacher = make_nlp(wide_dir if wide else other_dir)
    hidden = HiddenStates(component(student), component(teacher), layers)
    assert len(hidden.projections) == (len(layers) if wide else 0)
    for projection in hidden.projections:
        assert not projection.get_param("b").any()
        projection.set_param("b", np.linspace(-1, 1, TEACHER_WIDTH, dtype="f"))
    records = hidden.record(docs_of(teacher))
    examples = examples_of(student)
    docs = [example.predicted for example in examples]
    losses = {"transformer": 1.0}
    update_encoder(hidden.student, examples, [(hidden, records, 0.7)], losses)
    loss = losses["transformer"] - 1
    d_logits = torch.zeros(0)
    if head == "active":
        tagger = student.get_pipe("tagger").model
        output = tagger.get_ref("output_layer")
        _, backprop = tagger.begin_update(docs)
        d_logits = torch.randn(
            (sum(map(len, docs)), output.get_dim("nO")), generator=torch.Generator().manual_seed(0)
        )
        backprop(np.split(d_logits.numpy(), np.cumsum([len(doc) for doc in docs])[:-1]))
        assert losses["transformer"] > 1 + loss  # what the listener reports
    student(SENTENCES[1])  # the batch is over, whoever has not reported

    reference = transformers.AutoModel.from_pretrained(bert_dir).train()
    linears = [linear_of(projection) for projection in hidden.projections]
    total = torch.tensor(0.0)
    width = TEACHER_WIDTH if wide else WIDTH
    targets = torch.tensor(np.concatenate(records["vectors"]).astype("f"))
    recorded = sorted({layer for _, layer in layers})
    for i, (own_layer, layer) in enumerate(layers):
        own = naive_vectors(bert_dir, reference, docs, own_layer)
        assert len(own) == len(targets)
        place = recorded.index(layer) * width
        for vector, target in zip(own, targets[:, place : place + width], strict=True):
            if not vector.any() or not target.any():
                continue
            if wide:
                vector = torch.nn.functional.linear(vector, *linears[i])
            total = total + ((vector - target) ** 2).mean() / len(layers) * 0.7
    assert loss == pytest.approx(total.item(), rel=1e-4)
    if head == "active":
        vectors = naive_vectors(bert_dir, reference, docs, LAYERS)
        logits = vectors @ torch.tensor(output.get_param("W")).T
        total = total + (logits * d_logits).sum()
    total.backward()

    named = torch_model_of(student).named_parameters()
    found = {name: p.grad.numpy() for name, p in named if p.grad is not None and p.grad.any()}
    wanted = {n: p.grad.numpy() for n, p in reference.named_parameters() if p.grad is not None}
    wanted = {name: gradient for name, gradient in wanted.items() if gradient.any()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(found[name] / scale, gradient / scale, rtol=0, atol=1e-4)
    for projection, leaves in zip(hidden.projections, linears, strict=True):
        for name, leaf in zip(("W", "b"), leaves, strict=True):
            np.testing.assert_allclose(projection.get_grad(name), leaf.grad, rtol=1e-3, atol=1e-4)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(bert_dir: Path) -> None:
    student, teacher = make_nlp(bert_dir), make_nlp(bert_dir)
    hidden = HiddenStates(component(student), component(teacher), [(1, 1), (2, 2)])
    vectors = encoder_of(teacher).predict_docs(docs_of(teacher), hidden.student.model.ops, [1, 2])
    losses: dict[str, float] = {}
    update_encoder(
        hidden.student, examples_of(student), [(hidden, {"vectors": vectors}, 1.0)], losses
    )
    assert losses["transformer"] == pytest.approx(0, abs=1e-9)
    for parameter in torch_model_of(student).parameters():
        np.testing.assert_allclose(parameter.grad, 0, atol=1e-5)


def test_a_token_without_a_piece_counts_nothing(bert_dir: Path, other_dir: Path) -> None:
    """Be it the teacher that has none, or the student."""
    student, teacher = make_nlp(bert_dir), make_nlp(other_dir)
    hidden = HiddenStates(component(student), component(teacher), [(2, 2)])
    doc = Doc(student.vocab, ["a", "\u200b", "b", "c"])
    (own,) = encoder_of(student).predict_docs([doc], hidden.student.model.ops)
    assert own.any(axis=1).tolist() == [True, False, True, True]
    vectors: Any = np.random.default_rng(0).normal(size=(4, WIDTH)).astype("float16")
    vectors[2] = 0
    losses: dict[str, float] = {}
    update_encoder(
        hidden.student, [Example(doc, doc.copy())], [(hidden, {"vectors": [vectors]}, 1.0)], losses
    )
    expected = sum(float(((own[i] - vectors[i]) ** 2).mean()) for i in (0, 3))
    assert losses["transformer"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("texts", [[], [""], ["  ", ""]])
def test_docs_without_pieces(bert_dir: Path, wide_dir: Path, texts: list[str]) -> None:
    student, teacher = make_nlp(bert_dir, ["tagger"]), make_nlp(wide_dir)
    hidden = HiddenStates(component(student), component(teacher), [(1, 2), (2, 3)])
    before, projections = weights_of(student), hidden.to_bytes()
    losses: dict[str, float] = {}
    records = hidden.record(docs_of(teacher, texts))
    update_encoder(hidden.student, examples_of(student, texts), [(hidden, records, 1.0)], losses)
    component(student).finish_update(adam())
    hidden.finish_update(adam())
    assert losses == {"transformer": 0.0}
    assert same(before, weights_of(student), atol=0)
    assert hidden.to_bytes() == projections


@pytest.mark.parametrize("wide", [False, True], ids=["same-width", "projected"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_an_error(
    bert_dir: Path, wide_dir: Path, wide: bool, value: float
) -> None:
    """And nothing learns from it, be it now or with the next batch."""
    student, teacher = make_nlp(bert_dir, ["tagger"]), make_nlp(wide_dir if wide else bert_dir)
    hidden = HiddenStates(component(student), component(teacher), [(1, 2)])
    before, projections = weights_of(student), hidden.to_bytes()
    records = hidden.record(docs_of(teacher))
    records["vectors"][0][3, 5] = value
    losses: dict[str, float] = {}
    with pytest.raises(ValueError, match=r"E910.*'transformer'"):
        update_encoder(hidden.student, examples_of(student), [(hidden, records, 1.0)], losses)
    assert losses == {"transformer": 0.0}
    component(student).finish_update(adam())
    hidden.finish_update(adam())
    assert same(before, weights_of(student), atol=0)
    assert hidden.to_bytes() == projections


def test_records_of_other_docs_are_an_error(bert_dir: Path) -> None:
    student, teacher = make_nlp(bert_dir), make_nlp(bert_dir)
    hidden = HiddenStates(component(student), component(teacher), [(2, 2)])
    records = hidden.record(docs_of(teacher, SENTENCES[:2]))
    with pytest.raises(ValueError, match=r"of docs of \[14, 12\] tokens.*have \[12, 14\]"):
        update_encoder(
            hidden.student, examples_of(student, SENTENCES[1::-1]), [(hidden, records, 1.0)], {}
        )


def test_a_student_learns(bert_dir: Path, wide_dir: Path) -> None:
    student, teacher = make_nlp(bert_dir, ["tagger"]), make_nlp(wide_dir)
    hidden = HiddenStates(component(student), component(teacher), [(1, 2), (2, 3)])
    records = hidden.record(docs_of(teacher, SENTENCES))
    optimizer = adam(1e-2)
    history = []
    for _ in range(30):
        losses: dict[str, float] = {}
        update_encoder(
            hidden.student, examples_of(student, SENTENCES), [(hidden, records, 1.0)], losses
        )
        component(student).finish_update(optimizer)
        hidden.finish_update(optimizer)
        history.append(losses["transformer"])
    assert history[-1] < 0.3 * history[0]


# Projections


def test_projections_are_saved(bert_dir: Path, wide_dir: Path, other_dir: Path) -> None:
    student, teacher = component(make_nlp(bert_dir)), component(make_nlp(wide_dir))
    layers = [(1, 2), (2, 3)]
    hidden, other = HiddenStates(student, teacher, layers), HiddenStates(student, teacher, layers)
    data = hidden.to_bytes()
    assert other.to_bytes() != data
    assert other.from_bytes(data) is other
    assert other.to_bytes() == data
    given = HiddenStates(student, teacher, layers, hidden.projections)
    assert [*map(id, given.projections)] == [*map(id, hidden.projections)]
    for wrong in (
        HiddenStates(student, teacher, [(2, 3)]),
        HiddenStates(student, component(make_nlp(other_dir)), [(1, 1), (2, 2)]),
        HiddenStates(student, teacher, layers, make_projections(2, WIDTH, 50)),
    ):
        with pytest.raises(WeightsError, match="projections do not fit"):
            wrong.from_bytes(data)


def test_projections_are_for_other_widths_alone() -> None:
    assert make_projections(3, 32, 32) == []
    first, second = make_projections(2, 32, 48)
    assert first.get_param("W").shape == (48, 32)
    assert 0.05 < np.abs(first.get_param("W")).max() <= (6 / (32 + 48)) ** 0.5
    assert (first.get_param("W") != second.get_param("W")).any()


# Finding encoders


def test_find_encoder(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    nlp.add_pipe("sentencizer", first=True)
    assert find_encoder(nlp) is component(nlp)
    assert teacher_encoder(nlp) is component(nlp)
    assert find_encoder(spacy.blank("en")) is None


@pytest.mark.parametrize("factory", ["tok2vec", "transformer"])
def test_a_teacher_of_another_kind_is_told_what_to_do(factory: str) -> None:
    if factory == "transformer":
        pytest.importorskip("spacy_transformers")
    nlp = spacy.blank("en")
    nlp.add_pipe(factory, name="encoder")
    message = rf"Its components: encoder \({factory}\).*spacy distil convert.*no stage of"
    with pytest.raises(ConfigError, match=message):
        teacher_encoder(nlp)
