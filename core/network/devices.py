"""Choose the device and the precision for this machine."""

from dataclasses import dataclass

import torch

from core.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Resolve "auto" to the GPU if there is one.

    Raises:
        ConfigError: the named device is not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, there in available.items() if there), "cpu"))
    if not available.get(name, True):
        raise ConfigError(
            f"device {name} was asked for, but this machine has none; "
            "set NEIGHBORDX_DEVICE=auto or cpu.",
            code="config.device",
        )
    return torch.device(name)


@dataclass(frozen=True)
class GpuMemory:
    """Memory of a GPU, bytes."""

    name: str
    peak_bytes: int  # peak reserved by this process
    free_bytes: int  # free now, including what this process holds


def read_gpu_memory(device: torch.device) -> GpuMemory | None:
    """Read free memory and this process's peak on a CUDA device; None for other devices."""
    if device.type != "cuda":
        return None
    free, _total = torch.cuda.mem_get_info(device)
    return GpuMemory(
        name=torch.cuda.get_device_name(device),
        peak_bytes=int(torch.cuda.max_memory_reserved(device)),
        free_bytes=int(free + torch.cuda.memory_reserved(device)),
    )


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve "auto": bfloat16 if the device supports it natively, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"
