"""The torch engine: trains, on CPU and GPU. The one module that runs an encoder with torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors import torch as safetensors
from thinc.api import Ops
from thinc.types import Floats2d
from thinc.util import torch2xp, xp2torch
from torch.utils.checkpoint import checkpoint

from spacy_distil.encoding import Batch, to_ops
from spacy_distil.engines.base import Backprop, StepSettings
from spacy_distil.engines.changes import EncoderChanges, settle
from spacy_distil.engines.files import CONFIG, WEIGHTS, dump_config, parse_config
from spacy_distil.engines.onednn import is_faster, use_onednn
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.engines.pretrained import building, load_encoder, refuse_gaps
from spacy_distil.errors import ConfigError, OutOfMemoryError, WeightsError

# On a CPU larger batches only cost memory, a GPU wants work.
CPU_BATCH_PIECES = 1536
GPU_BATCH_PIECES = 16384
# The number of a layer in the name of a weight.
_LAYER = re.compile(r"\blayers?\.(\d+)\.")
# Weights below all layers. DeBERTa's "rel_embeddings", of distances, are used by each of them.
_EMBEDDING = re.compile(r"\bembedding")

# A forked child inherits a pool of threads that do not exist there: the first parallel operation
# would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class TorchEngine:
    """A transformers encoder.

    The module rests in evaluation mode and is put into training mode for the forward of an update
    alone, so that threads that predict never see it change.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        *,
        device: str = "auto",
        mixed_precision: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        """model: its weights are used as they are, and learn.

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
        # Only float16 is narrow enough to need loss scaling.
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self._autocast is torch.float16
        )
        self._optimizer: torch.optim.AdamW | None = None

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
        files: Mapping[str, bytes],
        *,
        layer: int | None = None,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        **settings: Any,
    ) -> TorchEngine:
        """Load what `to_files` returned."""
        changes = EncoderChanges(layer, dropout, attention_dropout)
        return cls(_load_files(files, changes), **settings)

    @property
    def width(self) -> int:
        return self._model.config.hidden_size

    @property
    def n_layers(self) -> int:
        return int(self._model.config.num_hidden_layers)

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
    def model(self) -> transformers.PreTrainedModel:
        """The module itself, for what is not the engine's business."""
        return self._model

    def predict(self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None) -> Floats2d:
        # On a CPU predictions stay in float32, so that they are the same on every CPU.
        precision = self._autocast if self.device.type == "cuda" else None
        with self._naming(batch, "encoding"), torch.inference_mode():
            states = self._forward(*self._to_device(batch), precision, layers)
            return _to_array(_side_by_side(states), ops)

    def begin_update(
        self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None
    ) -> tuple[Floats2d, Backprop]:
        forward: Callable[..., list[torch.Tensor]] = self._forward_in_training
        if not self._keeps_graphs:
            # It saves and restores random numbers of the devices of its arguments: of the tensors.
            forward = partial(checkpoint, forward, use_reentrant=False)
        with self._naming(batch, "encoding"):
            states = forward(*self._to_device(batch), self._autocast, layers)

        def backprop(d_rows: Floats2d) -> None:
            gradients = xp2torch(d_rows, device=self.device).split(self.width, dim=1)
            scaled = [self._scaler.scale(gradient) for gradient in gradients]
            with self._naming(batch, "the backward pass of"):
                torch.autograd.backward(states[: len(scaled)], scaled)

        return _to_array(_side_by_side([each.detach() for each in states]), ops), backprop

    def step(self, settings: StepSettings) -> None:
        if self._optimizer is None:
            self._optimizer = self._make_optimizer()
        optimizer = self._optimizer
        for group in optimizer.param_groups:
            group["lr"] = settings.learn_rate * settings.layer_decay ** group["depth"]
            group["betas"] = (settings.beta1, settings.beta2)
            group["eps"] = settings.eps
            group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0
        self._scaler.unscale_(optimizer)
        if settings.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.grad_clip)
        self._scaler.step(optimizer)
        self._scaler.update()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        self._model.zero_grad(set_to_none=True)

    def optimizer_to_bytes(self) -> bytes:
        state = {
            f"{name}/{key}": value
            for name, parameter in self._model.named_parameters()
            for key, value in self._state_of(parameter).items()
        }
        scaler = json.dumps(self._scaler.state_dict())
        return safetensors.save(state, metadata={"scaler": scaler})

    def optimizer_from_bytes(self, data: bytes) -> None:
        optimizer = self._optimizer = self._make_optimizer()
        parameters = dict(self._model.named_parameters())
        for key, value in safetensors.load(data).items():
            name, _, moment = key.rpartition("/")
            # AdamW counts steps on the device where it is fused.
            optimizer.state[parameters[name]][moment] = value.to(self.device)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        if scaler := json.loads(metadata["scaler"]):  # empty where it had nothing to scale
            self._scaler.load_state_dict(scaler)

    def _state_of(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        return {} if self._optimizer is None else self._optimizer.state.get(parameter, {})

    def to_files(self) -> dict[str, bytes]:
        weights = {k: v.detach().cpu().contiguous() for k, v in self._model.state_dict().items()}
        config = json.loads(self._model.config.to_json_string())
        config["architectures"] = [type(self._model).__name__]
        return {
            CONFIG: dump_config(config),
            # transformers reads only files that say which framework wrote them.
            WEIGHTS: safetensors.save(weights, metadata={"format": "pt"}),
        }

    def _to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, mask and positions."""
        if self.device.type == "cuda" and torch.cuda._is_in_bad_fork():
            raise ConfigError(
                f"An encoder on {self.device} cannot be used in a forked process, as n_process "
                'makes them on Linux. Load the pipeline with device = "cpu", or leave out '
                "n_process: a GPU is fastest with large batches of one process."
            )
        arrays = (batch.ids, batch.mask, batch.positions)
        ids, mask, positions = (torch.from_numpy(array).to(self.device) for array in arrays)
        return ids, mask, positions

    def _forward_in_training(self, *args: Any) -> list[torch.Tensor]:
        """As `_forward`, with dropout."""
        self._model.train()
        try:
            return self._forward(*args)
        finally:
            self._model.eval()

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        precision: torch.dtype | None,
        layers: Sequence[int] | None,
    ) -> list[torch.Tensor]:
        """Hidden states at a batch's positions, (n_rows, width) for each of the layers."""
        self._check_layers(layers)
        every_layer = {} if layers is None else {"output_hidden_states": True}
        autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
        if precision is not None:
            autocast = torch.autocast(self.device.type, dtype=precision)
        with autocast:
            # Ids and mask are what every encoder takes; whatever else a tokenizer would print,
            # such as token types, has a default that means "one text".
            output = self._model(input_ids=ids, attention_mask=mask, **every_layer)
        if layers is None:
            return [_at(output.last_hidden_state, positions)]
        # Some families norm the output of the last layer once more.
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return [_at(states[i], positions) for i in layers]

    @contextlib.contextmanager
    def _naming(self, batch: Batch, what: str) -> Iterator[None]:
        """Say which batch takes more memory than there is. what: is done with it."""
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            n_windows, length = batch.ids.shape
            raise OutOfMemoryError(
                f"{self.device_name} has no memory left for {what} {n_windows} windows of "
                f"{length} pieces ({error})."
            ) from error

    def _check_layers(self, layers: Sequence[int] | None) -> None:
        there = range(self.n_layers + 1)
        if layers is not None and (not layers or any(i not in there for i in layers)):
            raise ConfigError(
                f"layers = {list(layers)}: expected numbers of hidden states of this encoder, from "
                f"0 (its embeddings) to {self.n_layers} (the output of its last layer)."
            )

    def _make_optimizer(self) -> torch.optim.AdamW:
        groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self._model.named_parameters():
            layer = _LAYER.search(name)
            # Layers count down from the top, which is 0. Embeddings lie below all of them; what
            # else has no number belongs to all layers, or stands above them.
            depth = self.n_layers if _EMBEDDING.search(name) else 0
            if layer:
                depth = self.n_layers - 1 - int(layer[1])
            groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": parameters, "depth": depth, "decays": decays}
                for (depth, decays), parameters in groups.items()
            ],
            fused=self.device.type in ("cpu", "cuda"),
        )


def choose_device(device: str) -> torch.device:
    """The torch device of a setting: "auto" is the first of CUDA, MPS, CPU that is there.

    Raises ConfigError for a device that torch does not know or does not see.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        # By its number: which GPU is the current one may differ from thread to thread.
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
    """Rows of hidden states, (n_rows, width) float32.

    hidden: (n_windows, length, width).
    positions: (n_rows,) in the flattened grid.
    """
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions).float()


def _side_by_side(states: list[torch.Tensor]) -> torch.Tensor:
    """(n_rows, width for each of the states)"""
    return states[0] if len(states) == 1 else torch.cat(states, dim=1)


def _to_array(tensor: torch.Tensor, ops: Ops) -> Floats2d:
    if ops.device_type == "gpu" and tensor.device.type == "cuda":
        return cast(Floats2d, torch2xp(tensor, ops=ops))
    return to_ops(ops, tensor.cpu().numpy())


def _is_above(name: str, n_layers: int) -> bool:
    """Whether a weight is that of a layer above the first ones."""
    layer = _LAYER.search(name)
    return layer is not None and int(layer[1]) >= n_layers


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has none left. torch has a class for CUDA's errors alone."""
    message = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        part in message
        # The last one is oneDNN's.
        for part in ("can't allocate memory", "out of memory", "could not create a primitive")
    )


def _load_files(
    files: Mapping[str, bytes], changes: EncoderChanges
) -> transformers.PreTrainedModel:
    try:
        weights = safetensors.load(files[WEIGHTS])
    except SafetensorError as error:
        raise WeightsError(
            f"{WEIGHTS} ({len(files[WEIGHTS]):,} bytes) cannot be read: {error}. "
            "It is truncated or no safetensors file; save or copy the pipeline again."
        ) from error
    settings = parse_config(files)
    try:
        config_class = transformers.CONFIG_MAPPING[settings["model_type"]]
    except KeyError as error:
        raise WeightsError(
            f"{CONFIG} has model_type {settings['model_type']!r}, which transformers "
            f"{transformers.__version__} does not know. Install a newer transformers."
        ) from error
    try:
        config = config_class.from_dict(settings)
    except Exception as error:  # each version and family of transformers raises its own
        raise WeightsError(f"{CONFIG} is no {settings['model_type']} config: {error}") from error
    settle(config)
    changes.apply(config)
    try:
        # No memory and no time for random weights: the saved ones take their place.
        with init_empty_weights(include_buffers=False):
            model = transformers.AutoModel.from_config(config, **building(config))
    except Exception as error:  # each version and family of transformers raises its own
        raise WeightsError(
            f"{CONFIG} describes no encoder that transformers {transformers.__version__} can "
            f"build: {error}"
        ) from error
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if changes.layer is not None:
        # Layers above it may have been saved.
        above = [name for name in weights if _is_above(name, changes.layer)]
        for name in above:
            del weights[name]
    refuse_gaps(
        WEIGHTS,
        expected.keys() - weights.keys(),
        weights.keys() - expected.keys(),
        [
            (name, tuple(weights[name].shape), tuple(shape))
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        ],
    )
    model.load_state_dict(weights, assign=True)
    return model.float()
