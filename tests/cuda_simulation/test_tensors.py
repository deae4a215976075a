"""The simulated device itself. `test_cuda_simulation.py` runs these tests on it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cuda_simulation.device import is_active
from tests.cuda_simulation.tensors import SimulatedTensor
from tests.cuda_simulation.waits import WaitError, waits

pytestmark = pytest.mark.skipif(not is_active(), reason="tests the simulated GPU")


def gpu(*numbers: float) -> Tensor:
    return torch.tensor(numbers, device="cuda")


@pytest.mark.parametrize(
    ("waiting", "call"),
    [
        (1, lambda x: x.cpu()),
        (1, lambda x: x.sum().item()),
        (1, lambda x: bool(x.sum() > 0)),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.nonzero()),
        (1, lambda x: x[x > 1]),
        (1, lambda x: torch.equal(x, x)),
        (1, lambda x: x.to("cpu", non_blocking=True)),
        (1, lambda x: x + torch.ones(2).to("cuda")),
        (1, lambda x: x + torch.ones(2).pin_memory().to("cuda")),
        (1, lambda x: x + torch.ones(2).to("cuda", non_blocking=True)),
        (1, lambda x: x[torch.tensor([0])]),
        (1, lambda x: torch.cuda.synchronize()),
        (0, lambda x: x + torch.ones(2).pin_memory().to("cuda", non_blocking=True)),
        (0, lambda x: x[torch.arange(2, device="cuda")]),
        (0, lambda x: torch.where(x > 1, x, 0.0).softmax(0)),
        (0, lambda x: x + torch.zeros(2, device="cuda") + torch.randn_like(x)),
        (0, lambda x: x.new_zeros(3).add_(1)),
        (0, lambda x: x * torch.tensor(2.0)),
    ],
)
def test_waits(waiting: int, call: Callable[[Tensor], object]) -> None:
    x = gpu(1.0, 2.0)
    with waits.watch() as notes:
        call(x)
    assert len(notes) == waiting, notes
    assert all(__file__ in note for note in notes)


def test_waits_can_be_forbidden() -> None:
    x = gpu(1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(WaitError, match=r"_local_scalar_dense.*test_tensors.py"):
            x.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.item() == 1.0


def test_devices_do_not_mix() -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        gpu(1.0, 2.0) + torch.ones(2)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.cat([gpu(1.0), torch.ones(2)])
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        gpu(1.0).numpy()


def test_training_is_that_of_the_cpu() -> None:
    """Dropout, backward pass and fused AdamW. The generator is the same."""
    torch.manual_seed(0)
    cpu = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))
    other = copy.deepcopy(cpu).to("cuda")
    x = torch.randn(16, 4)
    for model, inputs in ((cpu, x), (other, x.to("cuda"))):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            loss = model(inputs).square().mean()
            assert loss.device == inputs.device
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for found, expected in zip(other.parameters(), cpu.parameters(), strict=True):
        assert isinstance(found, torch.nn.Parameter)
        assert isinstance(found.data, SimulatedTensor)
        torch.testing.assert_close(found.detach().cpu(), expected.detach())


def test_autocast() -> None:
    """As on CUDA, products are in bfloat16 and layer norms in float32."""
    linear, norm = torch.nn.Linear(4, 4).cuda(), torch.nn.LayerNorm(4).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        product = linear(torch.ones(2, 4, device="cuda"))
        assert product.dtype == torch.bfloat16
        assert norm(product).dtype == torch.float32


def test_inference_mode_leaves_weights_as_they_are() -> None:
    linear = torch.nn.Linear(2, 2).cuda()
    with torch.inference_mode():
        linear(torch.ones(1, 2, device="cuda"))
    linear(torch.ones(1, 2, device="cuda")).sum().backward()
    assert linear.weight.grad is not None


def test_saving_and_copying() -> None:
    linear = torch.nn.Linear(2, 2).cuda()
    file = io.BytesIO()
    torch.save(linear.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["weight"].device.type == "cpu"
    torch.testing.assert_close(loaded["weight"], linear.weight.detach().cpu())
    copied = copy.deepcopy(linear)
    with torch.no_grad():
        copied.weight.zero_()
    assert linear.weight.abs().sum() > 0
    assert copied.weight.requires_grad
