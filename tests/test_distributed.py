"""Several processes that train one model."""

import os
import signal
import sys
from pathlib import Path

import torch
from helpers import log_of, run_training, start_training, wait_for


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def test_two_processes_train_as_one_and_go_on_as_one(unbroken):
    plain = ["--dropout", 0, "--epochs", 1, "--precision", "float32"]  # bf16 rounds a half batch differently
    one, two = unbroken.parent / "one", unbroken.parent / "two"
    assert run_training(one, *plain)[0] == 0
    code, out, err = run_training(two, *plain, launch=TORCHRUN)
    assert code == 0 and out.count("; trained on") == 1 and "2 processes" in out, err
    losses = [[[float(row[i]) for i in (2, 3)] for row in log_of(folder)] for folder in (one, two)]
    assert torch.allclose(*map(torch.tensor, losses), rtol=0, atol=1e-4) and len(losses[0]) > 3

    # a killed worker ends the run, and one process goes on from what the other has left
    killed = unbroken.parent / "killed_worker"
    process = start_training(killed, *plain, launch=TORCHRUN)
    wait_for(process, "tokens/s=")
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    ours = [pid for pid in pids if of_group(pid, process.pid, b"RANK=1")]
    os.kill(ours[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0 and (killed / "checkpoint.pt").exists()
    code, out, err = run_training(killed, *plain)
    assert code == 0 and "goes on" in out, err
    again = [[float(row[i]) for i in (2, 3)] for row in log_of(killed)]
    assert torch.allclose(torch.tensor(again), torch.tensor(losses[0]), rtol=0, atol=1e-4)

    code, _, err = run_training(two, "--batch_size", 7, launch=TORCHRUN)
    assert code != 0 and err.count("--batch_size 7 does not divide among 2 processes") == 1


def of_group(pid: int, group: int, variable: bytes) -> bool:
    """Whether a process is one that torchrun started in this group, with this in its environment."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        parent, process_group, session = map(int, fields[1:4])
        if group not in (parent, process_group, session):
            return False
        return variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False


def test_a_killed_worker_is_started_again(unbroken):
    folder = unbroken.parent / "restarted"
    process = start_training(folder, "--dropout", 0, "--epochs", 1, launch=[*TORCHRUN, "--max-restarts=1"])
    wait_for(process, "tokens/s=")
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    ours = [pid for pid in pids if of_group(pid, process.pid, b"RANK=0")]
    os.kill(ours[0], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and "goes on" in out and not (folder / "checkpoint.pt").exists(), err
    assert int(log_of(folder)[-1][0]) == int(log_of(unbroken)[-1][0]) // 3
