"""Where the model runs, in which precision, how memory is kept, and whether the model is compiled."""

import contextlib
import ctypes
import re
import shutil
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from support.distributed import all_reduce_mean

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(precision: str = "auto") -> tuple[torch.device, torch.dtype]:
    """The device, and the precision of matrix products: "auto" is bf16 where hardware computes in it.

    On an AMD CPU with AVX-512 it also hands the float32 products of this process to a faster library.
    """
    if torch.cuda.is_available():
        device, native = torch.device("cuda"), torch.cuda.is_bf16_supported(including_emulation=False)
    elif torch.backends.mps.is_available():
        device, native = torch.device("mps"), False
    else:
        has_bf16, has_amx = torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
        device, native = torch.device("cpu"), has_bf16 or has_amx
        has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        if has_bf16 and has_avx512 and not has_amx:  # an AMD processor, Zen 4 or later
            # PyTorch gives float32 products to MKL. oneDNN needs 0.45 of MKL's time on an AMD EPYC (Zen 5),
            # but PyTorch uses it only if it may round to bf16 inside. Without AMX oneDNN does not round, and
            # tests/test_device.py checks that.
            torch.set_float32_matmul_precision("medium")
    return device, PRECISIONS.get(precision, torch.bfloat16 if native else torch.float32)


def give_back_freed_memory() -> None:
    """Have the C library give freed memory back. Reading 24 million characters leaves 150 MiB of it."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # it is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory for the next step instead of giving it back to the system.

    By default glibc gives each large tensor back, and the next step fetches it anew, page by page: 44,000
    page faults a step at d_model 256. With this 600, and a step takes 3% less (not compiled, float32, two
    cores). Where Linux gives pages of 2 MiB to those who ask for them, a step takes another 2% less.
    Elsewhere it does nothing.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, madvise, aligned_alloc = libc.mallopt, libc.madvise, libc.aligned_alloc
    except (AttributeError, OSError, TypeError):
        return
    if not mallopt(-3, 1 << 30):  # M_MMAP_THRESHOLD: blocks below 1 GiB come from the heap
        mallopt(-3, 1 << 25)  # 32 MiB, the most that older versions of glibc allow
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
    # A block that is never written takes no memory, but stretches the heap. Where it lay, ask for large pages
    page, size = ctypes.c_size_t(2**21), ctypes.c_size_t(2**29)
    aligned_alloc.restype = ctypes.c_void_p
    block = ctypes.c_void_p(aligned_alloc(page, size))
    madvise(block, size, 14)  # MADV_HUGEPAGE
    libc.free(block)


COMPILE_FROM = 180.0  # seconds left uncompiled: compiling takes up to 60 of them, then saves 20 to 60%
TIMED_CALLS = range(3, 8)  # the calls that are timed to estimate this; the first two set things up


def maybe_compile(loss: Callable, mode: str, steps: int, device: torch.device) -> Callable:
    """The loss for the `steps` to come, compiled if `mode`, the line `compile` of params.py, says so.

    "auto" compiles after some steps, on a CUDA GPU or on a CPU with a C++ compiler, if the rest is worth it.
    Freed memory is given back before training, and kept once that is decided.
    """
    give_back_freed_memory()
    if mode == "off":
        keep_freed_memory()
        return loss
    return CompilingLoss(loss, steps, device, at_once=mode == "on")


def can_compile(device: torch.device) -> bool:
    has_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    return device.type == "cuda" or (device.type == "cpu" and has_compiler)


class CompilingLoss:
    """A loss that is computed uncompiled at first, and compiled once that pays, unless the compiler fails."""

    def __init__(self, loss: Callable, steps: int, device: torch.device, at_once: bool):
        self.uncompiled = self.loss = loss
        self.steps, self.device, self.calls = steps, device, 0
        self.compile_at = 1 if at_once else TIMED_CALLS.stop
        self.timed_from = 0.0

    def __call__(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == TIMED_CALLS.start:
            self.timed_from = self.time_when_done()
        if self.calls != self.compile_at:
            return self.loss(input_ids, target_ids)
        compiles = self.compile_at == 1 or self.is_worth_compiling()
        loss = self.compile_on(input_ids, target_ids) if compiles else self.loss(input_ids, target_ids)
        keep_freed_memory()  # not earlier, or what the uncompiled steps took would be kept beside it
        return loss

    def is_worth_compiling(self) -> bool:
        """Whether the rest would take COMPILE_FROM seconds uncompiled, and the model can be compiled here.

        All processes take part, also those on a machine that cannot, and agree on the seconds.
        """
        seconds_per_step = (self.time_when_done() - self.timed_from) / len(TIMED_CALLS)
        seconds = torch.tensor(seconds_per_step * (self.steps - self.calls), device=self.device)
        seconds = all_reduce_mean(seconds).item()
        if seconds < COMPILE_FROM or not can_compile(self.device):
            return False
        minutes = f"about {seconds / 60:.0f} minutes to go uncompiled"
        tqdm.write(f"  {minutes}, so the model is compiled, which takes up to a minute")
        return True

    def time_when_done(self) -> float:
        """The clock, in seconds, once the device has done its work, which a GPU is handed ahead of time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    def compile_on(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Compile the loss for tensors like these, and compute it."""
        self.loss = torch.compile(self.uncompiled, dynamic=False)
        try:
            return self.loss(input_ids, target_ids)
        except Exception as error:  # whatever a broken compiler, or a missing header, makes of it
            self.loss = self.uncompiled
            found = re.search(r"error: (.+)", str(error))
            reason = found[1] if found else str(error).partition("\n")[0]
            tqdm.write(f"  compiling failed ({reason.strip()}); training goes on uncompiled")
            return self.loss(input_ids, target_ids)
