"""Linear layers by oneDNN compute the same as torch, forward and backward."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spacy_distil.engines import onednn
from spacy_distil.engines.onednn import OneDnnLinear, use_onednn
from tests.util import SENTENCES, make_nlp, same, torch_model_of

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)


def pair(n_in: int, n_out: int, *, bias: bool = True) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """Make a layer of torch, and one of oneDNN with the same weights."""
    torch.manual_seed(n_in)
    plain = torch.nn.Linear(n_in, n_out, bias=bias)
    other = torch.nn.Linear(n_in, n_out, bias=bias)
    other.load_state_dict(plain.state_dict())
    use_onednn(torch.nn.Sequential(other))
    assert type(other) is OneDnnLinear
    return plain, other


def run(layer: torch.nn.Linear, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and all gradients, for a loss that weighs each number of the output
    differently.
    """
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum().backward()
    gradients = [x.grad, *(p.grad for p in layer.parameters())]
    return [y.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (7, 16), (3, 5, 16), (2, 1, 16), (2, 3, 4, 16)])
def test_output_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected, found = (run(layer, x) for layer in pair(16, 24, bias=bias))
    assert len(found) == len(expected) == (4 if bias else 3)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_inputs_may_lie_across_memory() -> None:
    x = torch.randn(16, 5, 3, generator=torch.Generator().manual_seed(2)).transpose(0, 2)
    assert not x.is_contiguous()
    for a, b in zip(*(run(layer, x) for layer in pair(16, 8)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_differences() -> None:
    _, layer = pair(6, 4)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))
    inputs = x.clone().requires_grad_()
    (layer(inputs) * weights).sum().backward()
    assert inputs.grad is not None
    step = 1e-2
    for i in range(3):
        for j in range(6):
            moved = torch.zeros_like(x)
            moved[i, j] = step
            difference = ((layer(x + moved) - layer(x - moved)) * weights).sum() / (2 * step)
            assert abs(difference.item() - inputs.grad[i, j].item()) < 1e-3


def test_half_precision_is_left_to_torch() -> None:
    plain, other = pair(16, 8)
    x = torch.randn(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(other(x), plain(x), rtol=0, atol=0)
        assert other(x).dtype is torch.bfloat16
    found = other.to(torch.bfloat16)(x.to(torch.bfloat16))
    torch.testing.assert_close(found, plain.to(torch.bfloat16)(x.to(torch.bfloat16)))


def test_weights_that_are_frozen_get_no_gradient() -> None:
    _, layer = pair(4, 4)
    layer.requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_a_whole_encoder(encoder_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare vectors, gradients and saved files of each family."""
    nlps = []
    for chosen in (False, True):
        monkeypatch.setattr("spacy_distil.engines.torch.is_faster", lambda device, c=chosen: c)
        nlps.append(make_nlp(encoder_dir, device="cpu"))
    kinds = [{type(m) for m in torch_model_of(nlp).modules()} for nlp in nlps]
    assert OneDnnLinear in kinds[1] - kinds[0]
    assert torch.nn.Linear in kinds[0] - kinds[1]
    results: list[Any] = []
    for nlp in nlps:
        docs = [nlp.make_doc(text) for text in SENTENCES]
        tokvecs, backprop = nlp.get_pipe("transformer").model.begin_update(docs)
        backprop(tokvecs)
        module = torch_model_of(nlp)
        results.append(
            {
                "predicted": np.concatenate([doc.tensor for doc in nlp.pipe(SENTENCES)]),
                "trained": np.concatenate(tokvecs),
                **{n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None},
            }
        )
    scale = {name: max(1.0, float(np.abs(a).max())) for name, a in results[0].items()}
    found, expected = ({n: a / scale[n] for n, a in result.items()} for result in results)
    assert same(found, expected, atol=2e-5)
    assert nlps[0].to_bytes() == nlps[1].to_bytes()


def test_it_is_chosen_for_amd_with_avx512_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for model, capability, expected in (
        ("AMD EPYC 9R45", "AVX512", True),
        ("AMD EPYC 7R13", "AVX2", False),
        ("Intel(R) Xeon(R) Platinum 8488C", "AVX512", False),
    ):
        monkeypatch.setattr(onednn, "cpu_model", lambda m=model: m)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert onednn.is_faster(cpu) == expected
        assert not onednn.is_faster(torch.device("meta"))


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # compiles no code
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++"),
            ],
        ),
    ],
)
def test_compiled_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, other = pair(16, 24)
    x = torch.randn(7, 16, generator=torch.Generator().manual_seed(5))
    compiled = torch.compile(
        torch.nn.Sequential(other, torch.nn.GELU()), fullgraph=True, backend=backend
    )
    expected, found = (run(f, x) for f in (torch.nn.Sequential(plain, torch.nn.GELU()), compiled))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
