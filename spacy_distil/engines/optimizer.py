"""The optimizer of the torch engine: AdamW with a learning rate for each layer."""

from __future__ import annotations

import json
import math
import re
import warnings

import torch
import transformers
from safetensors import torch as safetensors

from spacy_distil.engines.base import StepSettings
from spacy_distil.engines.files import LAYER_NUMBER

# Pretrained encoders learn at 1e-5 to 3e-4. A higher rate from the first step destroys them.
HIGHEST_FIRST_RATE = 5e-4

# Weights below all layers. DeBERTa's "rel_embeddings" of distances are not: each layer uses them.
_EMBEDDING = re.compile(r"\bembedding")
# The number of a group of layers that share their weights, in ALBERT.
_GROUP = re.compile(r"\balbert_layer_groups\.(\d+)\.")


class EncoderOptimizer:
    """AdamW over the weights of an encoder, with loss scaling for float16."""

    def __init__(
        self, model: transformers.PreTrainedModel, device: torch.device, *, scale_loss: bool
    ) -> None:
        """model: its weights learn.

        scale_loss: whether gradients are computed in float16, which is too narrow for small ones.
        """
        self._model = model
        self._device = device
        self._scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
        self._adamw: torch.optim.AdamW | None = None

    def scale(self, gradient: torch.Tensor) -> torch.Tensor:
        """Scale a gradient that goes into the backward pass. `step` reverses it."""
        return self._scaler.scale(gradient)

    def step(self, settings: StepSettings) -> None:
        """Apply the gradients of the weights."""
        if self._adamw is None:
            _warn_of_rate(settings.learn_rate)
            self._adamw = self._make_adamw()
        for group in self._adamw.param_groups:
            group["lr"] = settings.learn_rate * settings.layer_decay ** group["depth"]
            group["betas"] = (settings.beta1, settings.beta2)
            group["eps"] = settings.eps
            group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0
        self._scaler.unscale_(self._adamw)
        if settings.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.grad_clip)
        self._scaler.step(self._adamw)
        self._scaler.update()

    def to_bytes(self) -> bytes:
        """Serialize the moments by the names of the weights, and the scale of the loss."""
        state = {
            f"{name}/{key}": value
            for name, parameter in self._model.named_parameters()
            for key, value in self._state_of(parameter).items()
        }
        scaler = json.dumps(self._scaler.state_dict())
        return safetensors.save(state, metadata={"scaler": scaler})

    def from_bytes(self, data: bytes) -> None:
        """Load what `to_bytes` returned."""
        adamw = self._adamw = self._make_adamw()
        parameters = dict(self._model.named_parameters())
        for key, value in safetensors.load(data).items():
            name, _, moment = key.rpartition("/")
            # Fused AdamW counts steps on the device.
            adamw.state[parameters[name]][moment] = value.to(self._device)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        if scaler := json.loads(metadata["scaler"]):  # empty if the loss is not scaled
            self._scaler.load_state_dict(scaler)

    def _state_of(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        return {} if self._adamw is None else self._adamw.state.get(parameter, {})

    def _make_adamw(self) -> torch.optim.AdamW:
        """Group the weights by depth and weight decay."""
        config = self._model.config
        n_layers = int(config.num_hidden_layers)
        groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self._model.named_parameters():
            number = LAYER_NUMBER.search(name)
            # Depth counts down from the uppermost layer, which is 0. Embeddings lie below all
            # layers. Other weights without a number belong to all layers, or lie above them.
            depth = n_layers if _EMBEDDING.search(name) else 0
            if number:
                depth = n_layers - 1 - int(number[1])
            elif shared := _GROUP.search(name):
                # That of the uppermost layer of the group.
                first_above = (int(shared[1]) + 1) * n_layers / config.num_hidden_groups
                depth = n_layers - math.ceil(first_above)
            groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": parameters, "depth": depth, "decays": decays}
                for (depth, decays), parameters in groups.items()
            ],
            fused=self._device.type in ("cpu", "cuda"),
        )


def _warn_of_rate(learn_rate: float) -> None:
    """Warn if the first step changes pretrained weights too much."""
    if learn_rate > HIGHEST_FIRST_RATE:
        warnings.warn(
            f"The encoder's first step has a learning rate of {learn_rate:g}, without warm-up; "
            f"above {HIGHEST_FIRST_RATE:g} an encoder forgets what it knows. Set learn_rate_scale "
            "in the encoder's model to 0.2 (0.05 for a full-size encoder), and a schedule such as "
            "warmup_linear.v1 in [training.optimizer.learn_rate].",
            stacklevel=2,
        )
