"""Where the model runs, in which precision, and whether it is compiled."""

import shutil
from collections.abc import Callable

import torch


def choose_device() -> tuple[torch.device, torch.dtype]:
    """The device to run on, and the precision of matrix products: bf16 if the hardware computes in it, else float32."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.device("cuda"), torch.bfloat16 if native else torch.float32
    if torch.backends.mps.is_available():
        return torch.device("mps"), torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.device("cpu"), torch.bfloat16 if native else torch.float32


COMPILE_FROM = 1000  # steps; compiling takes up to a minute, which a shorter run does not win back


def maybe_compile(loss: Callable, steps: int, device: torch.device) -> Callable:
    """The loss through torch.compile, if there is a compiler and the run has at least COMPILE_FROM steps."""
    has_compiler = device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
    if device.type not in ("cpu", "cuda") or not has_compiler or steps < COMPILE_FROM:
        return loss
    print("  compiling the model, which takes up to a minute the first time")
    return torch.compile(loss, dynamic=False)
