"""Find devices that compute in bfloat16 faster than in float32."""

from __future__ import annotations

import torch


def has_native_bf16(device: torch.device) -> bool:
    """Check whether a device has instructions for products of bfloat16 matrices.

    For a CPU this needs torch 2.10 or newer. With an older torch the answer is no.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return False
