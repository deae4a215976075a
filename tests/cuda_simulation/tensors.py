"""Tensors of the simulated device, and how operations on them are computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

from tests.cuda_simulation.waits import waits

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
aten: Any = torch.ops.aten
# The CPU needs their result, or the size of it, before it can go on.
WAITING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.repeat_interleave,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}
# Operations whose second argument is a list of indices. These may be on the CPU.
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
MASKS = (torch.bool, torch.uint8)


class SimulatedTensor(Tensor):
    """A tensor on the simulated device.

    values: its numbers, on the CPU.
    """

    values: Tensor

    # Everything arrives at `__torch_dispatch__`, below autograd.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> SimulatedTensor:
        # Weights that are used in inference mode must not become tensors of that mode.
        with torch.inference_mode(False):
            tensor = torch.Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                layout=values.layout,
                device=GPU,
            )
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return compute(operation, args, kwargs or {})

    # `Module.to` exchanges parameters if a tensor has these two.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(parts: Mapping[str, Tensor], *_: Any) -> SimulatedTensor:
        return SimulatedTensor(parts["values"])

    # torch writes these for tensors that have memory of their own.

    def __repr__(self, **_: Any) -> str:
        return f"SimulatedTensor({self.values!r})"

    def __deepcopy__(self, memo: Any) -> Any:
        copy = SimulatedTensor(self.values.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(copy, self.requires_grad)
        return copy.requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save the values. They are loaded on the CPU."""
        waits.note("saving")
        values = self.values.detach()
        if isinstance(self, torch.nn.Parameter):
            values = torch.nn.Parameter(values, self.requires_grad)
        return values.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        waits.note("tolist")
        return self.values.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()


def compute(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute an operation that has tensors of the simulated device among its arguments."""
    if operation._can_decompose():  # otherwise only in inference mode, where autograd is left out
        with torch.inference_mode(False), torch.no_grad():
            return operation.decompose(*args, **kwargs)
    name = operation.overloadpacket
    if name is aten._to_copy:
        return _to_copy(*args, **kwargs)
    if name is aten.copy_:
        return copy_(*args, **kwargs)
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    foreign = [each for each in tensors if not isinstance(each, SimulatedTensor)]
    if name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        _note_indices(operation, indices)
        foreign = _without(foreign, indices)
    # A number, a tensor without dimensions, may come from the CPU.
    if any(each.dim() for each in foreign):
        places = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in tensors)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {operation} got {places}"
        )
    if name in WAITING and kwargs.get("output_size") is None:
        waits.note(str(operation))
    inner_args, inner = tree_map_only(SimulatedTensor, lambda t: t.values, (args, dict(kwargs)))
    result_on_cpu = False
    if inner.get("device") is not None:  # as in `new_zeros(..., device="cpu")`
        result_on_cpu = torch.device(inner["device"]).type == "cpu"
        inner["device"] = CPU
    result = operation(*inner_args, **inner)
    return result if result_on_cpu else _to_gpu(result, tensors)


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Compute `target.copy_(source)`, if any of them is on the simulated device."""
    _note_transfer(source, isinstance(target, SimulatedTensor), non_blocking=non_blocking)
    _values(target).copy_(_values(source))
    return target


def _to_copy(
    source: Tensor, *, device: Any = None, non_blocking: bool = False, **options: Any
) -> Tensor:
    to_gpu = isinstance(source, SimulatedTensor) if device is None else _is_gpu(device)
    _note_transfer(source, to_gpu, non_blocking=non_blocking)
    options.pop("pin_memory", None)
    values: Tensor = aten._to_copy.default(_values(source), **options)
    return SimulatedTensor(values) if to_gpu else values


def _note_transfer(source: Tensor, to_gpu: bool, *, non_blocking: bool) -> None:
    """Note a copy from one device to the other, if the CPU waits for it.

    A copy to the CPU is always noted: if it does not block, something else has to wait.
    """
    from_gpu = isinstance(source, SimulatedTensor)
    if from_gpu and not to_gpu:
        waits.note(f"copy of {tuple(source.shape)} to the CPU")
    elif to_gpu and not from_gpu and not (non_blocking and is_pinned(source)):
        waits.note(f"copy of {tuple(source.shape)} to the GPU, blocking or not pinned")


def _note_indices(operation: Any, indices: Sequence[Tensor]) -> None:
    if any(index.dtype in MASKS for index in indices):
        waits.note(f"{operation} by a mask")
    if any(not isinstance(index, SimulatedTensor) for index in indices):
        waits.note(f"{operation} by indices on the CPU")


def _to_gpu(result: Any, tensors: Iterable[Tensor]) -> Any:
    """Put results on the simulated device.

    tensors: arguments of the operation. One that was changed in place is the result itself.
    """
    known = {id(each.values): each for each in tensors if isinstance(each, SimulatedTensor)}

    def put(values: Tensor) -> SimulatedTensor:
        before = known.get(id(values))
        return SimulatedTensor(values) if before is None else before

    return tree_map_only(Tensor, put, result)


def pin(tensor: Tensor, *_: Any) -> Tensor:
    """Do what `Tensor.pin_memory` does."""
    if isinstance(tensor, SimulatedTensor):
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )
    pinned = tensor.clone()
    pinned._simulation_pinned = True  # type: ignore[attr-defined]
    return pinned


def is_pinned(tensor: Tensor, *_: Any) -> bool:
    """Do what `Tensor.is_pinned` does. A view is not known to be pinned."""
    return getattr(tensor, "_simulation_pinned", False)


def _values(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, SimulatedTensor) else tensor


def _is_gpu(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def _without(tensors: Sequence[Tensor], left_out: Sequence[Tensor]) -> list[Tensor]:
    numbers = {id(each) for each in left_out}
    return [each for each in tensors if id(each) not in numbers]


# Functions that make a tensor out of nothing have no argument to dispatch on.


def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> SimulatedTensor:
    """Do what `torch.empty(size, device="cuda")` does."""
    layout = memory_format or torch.contiguous_format
    return SimulatedTensor(torch.empty(size, dtype=dtype, device=CPU, memory_format=layout))


def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> SimulatedTensor:
    """Do what `torch.empty_strided(size, stride, device="cuda")` does."""
    return SimulatedTensor(torch.empty_strided(size, stride, dtype=dtype, device=CPU))
