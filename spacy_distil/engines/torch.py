"""The torch engine: trains and predicts, on CPU and GPU."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import transformers
from thinc.api import Ops
from thinc.types import Floats2d
from thinc.util import torch2xp, xp2torch
from torch.utils.checkpoint import checkpoint

from spacy_distil.encoding import Batch, to_ops
from spacy_distil.engines.base import Backprop, StepSettings
from spacy_distil.engines.changes import EncoderChanges
from spacy_distil.engines.files import CONFIG, WEIGHTS, dump_config, join_parts
from spacy_distil.engines.onednn import is_faster, use_onednn
from spacy_distil.engines.optimizer import EncoderOptimizer
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.engines.pretrained import load_encoder, load_saved_encoder, store_weight
from spacy_distil.engines.weights_file import dump_weights_file
from spacy_distil.errors import ConfigError, OutOfMemoryError
from spacy_distil.runs.digests import Content, Parts

# Larger batches only cost memory on a CPU. A GPU needs them to be busy.
CPU_BATCH_PIECES = 1536
GPU_BATCH_PIECES = 16384
# Tensor cores multiply tiles of this many numbers.
GPU_LENGTH_MULTIPLE = 8

# A forked child inherits torch's pool of threads, but not the threads: the first parallel operation
# would wait for them forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class TorchEngine:
    """An encoder of transformers.

    The module is in evaluation mode, except during the forward pass of an update. So threads that
    predict never see it change.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        *,
        device: str = "auto",
        mixed_precision: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        """model: used as it is, not copied. Its weights learn.

        The other arguments are settings of `spacy-distil.DistilTransformer.v1`.
        """
        self.device = choose_device(device)
        self._keeps_graphs = not gradient_checkpointing
        self._model = model.to(self.device).eval()
        if is_faster(self.device):
            use_onednn(self._model)
        self._autocast: torch.dtype | None = None
        if mixed_precision and has_native_bf16(self.device):
            self._autocast = torch.bfloat16
        elif mixed_precision and self.device.type == "cuda":
            self._autocast = torch.float16
        self._optimizer = EncoderOptimizer(
            self._model, self.device, scale_loss=self._autocast is torch.float16
        )

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        layer: int | None = None,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        **settings: Any,
    ) -> TorchEngine:
        """Load a Hugging Face model by directory or hub name."""
        changes = EncoderChanges(layer, dropout, attention_dropout)
        return cls(load_encoder(name, changes), **settings)

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, Content],
        *,
        layer: int | None = None,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        **settings: Any,
    ) -> TorchEngine:
        """Load what `to_files` returned. A mapped file becomes its memory: map it anew for each."""
        changes = EncoderChanges(layer, dropout, attention_dropout)
        return cls(load_saved_encoder(files, changes), **settings)

    @property
    def width(self) -> int:
        return self._model.config.hidden_size

    @property
    def n_layers(self) -> int:
        return int(self._model.config.num_hidden_layers)

    @property
    def n_token_types(self) -> int:
        # Some families have no such setting, and others have 0 types.
        return max(1, getattr(self._model.config, "type_vocab_size", 1))

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self._model.parameters())

    @property
    def device_name(self) -> str:
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        return str(self.device)

    @property
    def batch_pieces(self) -> int:
        return CPU_BATCH_PIECES if self.device.type == "cpu" else GPU_BATCH_PIECES

    @property
    def length_multiple(self) -> int:
        return GPU_LENGTH_MULTIPLE if self.device.type == "cuda" else 1

    @property
    def model(self) -> transformers.PreTrainedModel:
        """The module itself, for purposes beyond this interface."""
        return self._model

    def predict(self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None) -> Floats2d:
        # On a CPU predictions stay in float32, so that they are the same on every CPU.
        precision = self._autocast if self.device.type == "cuda" else None
        with self._explain_out_of_memory(batch, "encoding"), torch.inference_mode():
            states = self._forward(precision, layers, *self._to_device(batch))
            return _to_array(_side_by_side(states), ops)

    def begin_update(
        self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None
    ) -> tuple[Floats2d, Backprop]:
        forward: Callable[..., list[torch.Tensor]] = self._forward_in_training
        if not self._keeps_graphs:
            # `checkpoint` restores random numbers for the devices of its tensor arguments.
            forward = partial(checkpoint, forward, use_reentrant=False)
        with self._explain_out_of_memory(batch, "encoding"):
            states = forward(self._autocast, layers, *self._to_device(batch))

        def backprop(d_rows: Floats2d) -> None:
            gradients = self._gradient_to_device(d_rows).split(self.width, dim=1)
            scaled = [self._optimizer.scale(gradient) for gradient in gradients]
            with self._explain_out_of_memory(batch, "the backward pass of"):
                torch.autograd.backward(states[: len(scaled)], scaled)

        return _to_array(_side_by_side([each.detach() for each in states]), ops), backprop

    def step(self, settings: StepSettings) -> None:
        self._optimizer.step(settings)
        self.clear_gradients()

    def clear_gradients(self) -> None:
        self._model.zero_grad(set_to_none=True)

    def optimizer_to_bytes(self) -> bytes:
        return self._optimizer.to_bytes()

    def optimizer_from_bytes(self, data: bytes) -> None:
        self._optimizer.from_bytes(data)

    def to_parts(self) -> dict[str, Parts]:
        config = json.loads(self._model.config.to_json_string())
        config["architectures"] = [type(self._model).__name__]
        weights = {k: store_weight(weight) for k, weight in self._model.state_dict().items()}
        return {
            CONFIG: [dump_config(config)],
            WEIGHTS: dump_weights_file(weights),
        }

    def to_files(self) -> dict[str, bytes]:
        return join_parts(self.to_parts())

    def _to_device(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Move ids, mask and positions to the device, and token types if the batch has pairs."""
        if self.device.type == "cuda" and torch.cuda._is_in_bad_fork():
            raise ConfigError(
                f"An encoder on {self.device} cannot be used in a forked process, which n_process "
                'starts on Linux. Load the pipeline with device = "cpu", or leave out n_process: '
                "a GPU is fastest with large batches of one process."
            )
        arrays = [batch.ids, batch.mask, batch.positions]
        if batch.seconds is not None and self.n_token_types > 1:
            is_second = np.arange(batch.ids.shape[1]) >= batch.seconds[:, None]
            arrays.append(is_second.astype(np.int64))
        if self.device.type == "cpu":
            return tuple(map(torch.from_numpy, arrays))
        joined = self._copy_to_device(np.concatenate([array.ravel() for array in arrays]))
        parts = joined.split([array.size for array in arrays])
        return tuple(part.view(array.shape) for part, array in zip(parts, arrays, strict=True))

    def _gradient_to_device(self, d_rows: Floats2d) -> torch.Tensor:
        if isinstance(d_rows, np.ndarray):
            return self._copy_to_device(d_rows)
        return xp2torch(d_rows, device=self.device)

    def _copy_to_device(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array to the device. For a GPU, return before the copy is complete."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _forward_in_training(self, *args: Any) -> list[torch.Tensor]:
        """Do the same as `_forward`, with dropout."""
        self._model.train()
        try:
            return self._forward(*args)
        finally:
            self._model.eval()

    def _forward(
        self,
        precision: torch.dtype | None,
        layers: Sequence[int] | None,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        types: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Compute hidden states at a batch's positions.

        precision: dtype of matrix products; None for float32.
        layers: see `TrainableEngine.predict`.
        types: (n_windows, length) token types; None for windows of one text.
        RETURNS: (n_rows, width) for each of the layers.
        """
        self._check_layers(layers)
        inputs: dict[str, Any] = {} if layers is None else {"output_hidden_states": True}
        if types is not None:
            inputs["token_type_ids"] = types
        autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
        if precision is not None:
            autocast = torch.autocast(self.device.type, dtype=precision)
        with autocast:
            # Every encoder takes ids and mask. The defaults of other inputs, such as token types,
            # mean "one text".
            output = self._model(input_ids=ids, attention_mask=mask, **inputs)
        if layers is None:
            return [_at(output.last_hidden_state, positions)]
        # In some families a norm follows the last layer.
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return [_at(states[i], positions) for i in layers]

    @contextlib.contextmanager
    def _explain_out_of_memory(self, batch: Batch, action: str) -> Iterator[None]:
        """Raise OutOfMemoryError, which names the batch, if the device runs out of memory.

        action: what is done with the batch, for the message.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            n_windows, length = batch.ids.shape
            raise OutOfMemoryError(
                f"{self.device_name} has no memory left for {action} {n_windows} windows of "
                f"{length} pieces ({error})."
            ) from error

    def _check_layers(self, layers: Sequence[int] | None) -> None:
        valid = range(self.n_layers + 1)
        if layers is not None and (not layers or any(i not in valid for i in layers)):
            raise ConfigError(
                f"layers = {list(layers)}: expected numbers of hidden states of this encoder, from "
                f"0 (its embeddings) to {self.n_layers} (the output of its last layer)."
            )


def choose_device(device: str) -> torch.device:
    """Return the torch device of a setting. "auto" is the first available of CUDA, MPS and CPU.

    Raises ConfigError for a device that torch does not know or does not see.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        # With its number, because each thread has its own current GPU.
        return torch.device("cuda", torch.cuda.current_device())
    if device == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device = {device!r} cannot be used: {error}\n"
            'Write "auto", "cpu", "mps", "cuda" or "cuda:N" of a GPU that torch sees '
            f"(it sees {torch.cuda.device_count()})."
        ) from error
    return chosen


def _at(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Select rows of hidden states.

    hidden: (n_windows, length, width).
    positions: (n_rows,) in the flattened grid.
    RETURNS: (n_rows, width) float32.
    """
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions).float()


def _side_by_side(states: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate the columns of hidden states: (n_rows, len(states) * width)."""
    return states[0] if len(states) == 1 else torch.cat(states, dim=1)


def _to_array(tensor: torch.Tensor, ops: Ops) -> Floats2d:
    if ops.device_type == "gpu" and tensor.device.type == "cuda":
        return cast(Floats2d, torch2xp(tensor, ops=ops))
    return to_ops(ops, tensor.cpu().numpy())


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Check whether an error means that a device has no memory left. torch has a class for CUDA's
    errors only.
    """
    message = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        part in message
        # oneDNN raises the last one.
        for part in ("can't allocate memory", "out of memory", "could not create a primitive")
    )
