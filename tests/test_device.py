"""Precision, and compiling: when it pays, and what happens if it cannot be done."""

import itertools
import mmap
import platform
from pathlib import Path

import pytest
import torch
from helpers import run_training

import support.device
from support.device import COMPILE_FROM, choose_device, give_back_freed_memory, keep_freed_memory
from support.device import maybe_compile
from support.own_process import in_own_process
from support.peers import default_products

CPU = torch.device("cpu")


def test_precision_is_what_was_asked_for():
    assert choose_device("float32")[1] == torch.float32
    assert choose_device("bfloat16")[1] == torch.bfloat16
    assert choose_device("auto")[1] in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    "rows, inputs, outputs", [(2048, 192, 1024), (512, 5000, 192), (1024, 2048, 192), (3, 64, 7)]
)
def test_float32_products_are_float32_whichever_library_computes_them(rows, inputs, outputs):
    """Rounded to bf16 inside, their error would be 200 times as large as the one that is allowed."""
    choose_device("float32")
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    exact = x.double() @ weight.double().T
    for product in (torch.nn.functional.linear(x, weight), x @ weight.T, (x[None] @ weight.T[None])[0]):
        assert (product - exact).square().mean().sqrt() < 1e-5 * exact.square().mean().sqrt()


@pytest.mark.parametrize(
    "capability, has_bf16, has_amx, setting",
    [
        ("AVX512", True, False, "medium"),
        ("AVX512", True, True, "highest"),
        ("AVX512", False, False, "highest"),
        ("AVX2", True, False, "highest"),
    ],
)
def test_products_may_be_rounded_inside_only_where_the_library_does_not_do_it(
    monkeypatch, capability, has_bf16, has_amx, setting
):
    """With AMX, oneDNN would. A peer has PyTorch's own setting, whatever ours is, also if it fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    torch.set_float32_matmul_precision("highest")
    try:
        choose_device("float32")
        assert torch.get_float32_matmul_precision() == setting
        assert default_products()(torch.get_float32_matmul_precision)() == "highest"
        with pytest.raises(ZeroDivisionError):
            default_products()(lambda: 1 / 0)()
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


def faults_and_large_pages() -> tuple[int, int]:
    """Page faults of a second round of 32 tensors of 4 MiB, and the KiB of this process in large pages."""
    import resource

    keep_freed_memory()
    faults = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2**20) for _ in range(32)]
        del tensors
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    pages = [line for line in lines if line.startswith("AnonHugePages")]
    return faults[1], int(pages[0].split()[1])


def memory_in_mib() -> list[int]:
    """The memory of this process before and after 150 MiB of freed pieces, between others, are given back."""
    pieces = [bytes(3000) for _ in range(50_000)]
    kept, pieces = pieces[::100], None
    sizes = [int(Path("/proc/self/statm").read_text().split()[1])]
    give_back_freed_memory()
    sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert len(kept) == 500
    return [pages * mmap.PAGESIZE // 2**20 for pages in sizes]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_reading_the_text_left_is_given_back():
    before, after = in_own_process(memory_in_mib, start_method="spawn")
    assert after < before - 100


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not LARGE_PAGES.exists(), reason="another C library or kernel"
)
def test_freed_memory_is_kept_for_the_next_step_in_large_pages():
    """If each tensor were given back, and asked for anew in pages of 4 KiB, that would be 32,768 faults."""
    faults, kib_in_large_pages = in_own_process(faults_and_large_pages, start_method="spawn")
    assert faults < 8192
    if "[never]" not in LARGE_PAGES.read_text():
        assert kib_in_large_pages > 2**15


def compiled_calls(monkeypatch, step_seconds: float, steps: int, mode="auto", compiler="g++") -> list[str]:
    """Which way each of 20 steps goes, where each takes step_seconds by the clock."""
    clock = itertools.count(step=step_seconds)
    monkeypatch.setattr(support.device.time, "monotonic", lambda: next(clock) / 5)  # read twice in five steps
    monkeypatch.setattr(torch, "compile", lambda loss, **_: lambda *batch: "compiled")
    monkeypatch.setattr(support.device.shutil, "which", lambda name: compiler)
    loss = maybe_compile(lambda *batch: "uncompiled", mode, steps, CPU)
    return [loss(None, None) for _ in range(20)]


def test_the_model_is_compiled_once_the_rest_of_the_run_is_long(monkeypatch, capsys):
    one_step = 2.0  # seconds between two looks at the clock; five steps lie between them
    few, many = int(0.9 * COMPILE_FROM / one_step * 25), int(1.2 * COMPILE_FROM / one_step * 25)
    assert set(compiled_calls(monkeypatch, one_step, few)) == {"uncompiled"}
    calls = compiled_calls(monkeypatch, one_step, many)
    assert calls[0] == "uncompiled" and calls[-1] == "compiled" and calls == sorted(calls, reverse=True)
    assert f"about {1.2 * COMPILE_FROM / 60:.0f} minutes to go uncompiled" in capsys.readouterr().out
    assert set(compiled_calls(monkeypatch, one_step, many, "off")) == {"uncompiled"}
    assert set(compiled_calls(monkeypatch, one_step, many, compiler=None)) == {"uncompiled"}
    assert set(compiled_calls(monkeypatch, one_step, few, "on")) == {"compiled"}


@pytest.mark.parametrize(
    "script", ["exit 1", "echo 'x.cpp:1:1: fatal error: Python.h: No such file' >&2; exit 1"]
)
def test_a_compiler_that_does_not_work_is_one_line_and_training_goes_on(unbroken, tmp_path, script):
    compiler = f"#!/bin/sh\ncase $* in *--version*) echo 'g++ 12'; exit 0;; esac\n{script}\n"
    for name in ("g++", "c++", "clang++"):
        (tmp_path / name).write_text(compiler)
        (tmp_path / name).chmod(0o755)
    broken = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    folder = unbroken.parent / f"broken_compiler_{len(script)}"
    code, out, err = run_training(folder, "--compile", "on", "--epochs", 0.2, **broken)
    assert code == 0 and (folder / "parameters.pt2").exists(), err
    assert out.count("compiling failed") == 1 and "training goes on uncompiled" in out
    assert "Traceback" not in out + err
    if "Python.h" in script:
        assert "(Python.h: No such file)" in out
