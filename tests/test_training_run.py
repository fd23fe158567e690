"""Nothing is lost: runs that are killed, signalled, started twice, or without room on the disk."""

import errno
import json
import os
import random
import signal
import time

import torch
from helpers import TINY, call, log_of, run_training, start_training, wait_for

import support.training_run
from support.checkpoint import load_snapshot, load_weights, snapshot_paths


def test_ten_kills_leave_no_trace_in_the_result(unbroken):
    folder, whole = unbroken.parent / "killed", unbroken.parent / "whole"
    generator, steps = random.Random(4), []
    long = "--epochs", 8  # a fast processor makes 50 steps from kill to kill
    assert run_training(whole, *long).code == 0
    while len(steps) < 10:
        process = start_training(folder, *long)
        text = wait_for(process, "tokens/s=")  # or it is killed before it has begun
        time.sleep(generator.random() * 0.25)
        os.kill(process.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        ended = "it had ended before: the run is too short for this test\n" + text
        assert process.returncode == -signal.SIGKILL, ended
        steps.append(int(out.split("after step ")[1].split()[0]) if "goes on" in out else 0)
    assert steps[0] == 0 and steps == sorted(steps) and len(set(steps)) > 5  # each goes on from the last one
    code, out, err = run_training(folder, *long)
    assert code == 0 and "goes on" in out, err
    ours, theirs = (torch.load(f / "parameters.pt2", weights_only=True) for f in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "_extra_state")
    assert log_of(folder) == log_of(whole)
    lines = (folder / "training_samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert samples and all(sample["text"].startswith("Столица Франции") for sample in samples)
    assert (folder / "training_samples.jsonl").read_bytes() == (whole / "training_samples.jsonl").read_bytes()
    ours, theirs = (dict(snapshot_paths(f)) for f in (folder, whole))
    assert len(ours) > 8 and ours.keys() == theirs.keys()
    for step in ours:
        weights = zip(load_snapshot(ours[step]).parameters(), load_snapshot(theirs[step]).parameters())
        assert all(torch.equal(a, b) for a, b in weights)
    assert not list(folder.glob("*.tmp")) and not (folder / "checkpoint.pt").exists()  # nothing to resume


def test_a_signal_saves_a_second_run_is_refused_and_other_hyperparameters_start_anew(unbroken):
    folder = unbroken.parent / "signalled"
    process = start_training(folder, "--epochs", 30)
    wait_for(process, "tokens/s=")
    code, _, err = run_training(folder)
    assert code == 2 and "another run is training" in err.splitlines()[-1] and "Traceback" not in err
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "SIGTERM" in out and (folder / "parameters.pt2").exists()

    before = (folder / "checkpoint.pt").read_bytes()
    code, out, err = run_training(folder, "--epochs", 0.1, "--learning_rate", 0.001)
    assert code == 0 and "epochs=30.0 and not 0.1" in out and "learning_rate=" in out, err
    assert "goes on" not in out and "d_model=" not in out, err
    (aside,) = folder.glob("checkpoint-*.pt")
    assert aside.read_bytes() == before and not (folder / "checkpoint.pt").exists()

    # Back to the earlier settings: their checkpoint is found. Where to look and what to save may change
    process = start_training(folder, "--epochs", 30, "--eval_every", 10, "--checkpoint_minutes", 9)
    assert "tokens/s=" in wait_for(process, "tokens/s=")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "goes on" in out and not list(folder.glob("checkpoint-*.pt")) and log_of(folder)

    # A run that ends before its first validation does not leave its weights beside the log of another
    process = start_training(folder, "--epochs", 40, "--eval_every", 1_000_000)
    wait_for(process, "tokens/s=")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert load_weights(folder / "parameters.pt2").trained_on["finished"] is False and log_of(folder) == []


def test_a_run_whose_disk_fills_up_says_so_and_resumes_from_what_is_there(unbroken, monkeypatch):
    """A write that fails at the third checkpoint stands in for the disk, so that this runs for anyone."""
    folder = unbroken.parent / "full"
    write, calls = support.training_run.write_torch_file, []

    def failing(path, state):
        calls.append(path)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, state)

    monkeypatch.setattr(support.training_run, "write_torch_file", failing)
    flags = ["--dataset", folder.parent / "text.jsonl", "--out_dir", folder, *TINY]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other runs, for the same numbers
    code, _, err = call("train.py", *flags)
    torch.set_num_threads(threads)
    assert code == 2 and "No space left on device" in err.splitlines()[-1] and "Traceback" not in err
    monkeypatch.undo()
    code, out, err = run_training(folder)
    assert code == 0 and "goes on" in out and "after step 20 " in out, err
    assert log_of(folder) == log_of(unbroken)
