"""Nothing is lost: runs that are killed, signalled, started twice, without room on the disk, or in several processes."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import articles
import checkpoint
import cli
import dataset

ROOT = Path(__file__).parent.parent
TINY = (
    "--d_model 32 --num_heads 2 --num_layers 2 --max_seq_len 32 --vocab_size 400 --batch_size 8 --eval_every 40 "
    "--dropout 0.1 --epochs 3 --checkpoint_minutes 0"
).split()
ENV = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def start(folder: Path, *more, script="train.py", launch=(sys.executable,)) -> subprocess.Popen:
    command = [*launch, script, "--dataset", folder.parent / "text.jsonl", "--out_dir", folder, *TINY, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=ENV, start_new_session=True, **pipes)


def run(folder: Path, *more, **how) -> tuple[int, str, str]:
    process = start(folder, *more, **how)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen, word: str) -> str:
    """Read its progress until the word comes."""
    text = ""
    while word not in text:
        got = process.stderr.read(50)
        assert got, text
        text += got
    return text


def log(folder: Path) -> list[list[str]]:
    """training_log.csv without what a clock has measured."""
    rows = list(csv.DictReader(open(folder / "training_log.csv")))
    return [[value for name, value in row.items() if name not in ("seconds", "tokens_per_second")] for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to, beside its text."""
    home = tmp_path_factory.mktemp("runs")
    lines = articles.SAMPLE.read_text(encoding="utf-8").splitlines()[:60]
    (home / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, out, err = run(home / "unbroken")
    assert code == 0, err
    return home / "unbroken"


def test_ten_kills_leave_no_trace_in_the_result(unbroken):
    folder, generator, steps = unbroken.parent / "killed", random.Random(4), []
    while len(steps) < 10:
        process = start(folder)
        text = wait_for(process, "tokens/s=")  # or it is killed before it has begun
        time.sleep(generator.random() * 0.35)
        os.kill(process.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "it had ended before: the run is too short for this test\n" + text
        steps.append(int(out.split("after step ")[1].split()[0]) if "goes on" in out else 0)
    assert steps[0] == 0 and steps == sorted(steps) and len(set(steps)) > 5  # each goes on where the one before was
    code, out, err = run(folder)
    assert code == 0 and "goes on" in out, err
    ours, theirs = (torch.load(f / "parameters.pt2", weights_only=True) for f in (folder, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "_extra_state")
    assert log(folder) == log(unbroken)
    samples = [json.loads(line) for line in (folder / "training_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert samples and all(sample["text"].startswith("Столицей Франции является") for sample in samples)
    assert (folder / "training_samples.jsonl").read_bytes() == (unbroken / "training_samples.jsonl").read_bytes()
    assert not list(folder.glob("*.tmp")) and not (folder / "checkpoint.pt").exists()  # a finished run is not resumed


def test_a_signal_saves_a_second_run_is_refused_and_other_hyperparameters_start_anew(unbroken):
    folder = unbroken.parent / "signalled"
    process = start(folder, "--epochs", 30)
    wait_for(process, "tokens/s=")
    code, _, err = run(folder)
    assert code == 2 and "another run is training" in err.splitlines()[-1] and "Traceback" not in err
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "SIGTERM" in out and (folder / "parameters.pt2").exists()

    before = (folder / "checkpoint.pt").read_bytes()
    code, out, err = run(folder, "--epochs", 0.1, "--learning_rate", 0.001)
    assert code == 0 and "epochs=30.0 and not 0.1" in out and "learning_rate=" in out and "goes on" not in out, err
    assert "d_model=" not in out
    assert (folder / "checkpoint.pt.1").read_bytes() == before and not (folder / "checkpoint.pt").exists()

    os.rename(folder / "checkpoint.pt.1", folder / "checkpoint.pt")  # where to look and what to save may change on the way
    process = start(folder, "--epochs", 30, "--eval_every", 10, "--checkpoint_minutes", 9)
    assert "tokens/s=" in wait_for(process, "tokens/s=")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "goes on" in out


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own with one MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_leaves_the_earlier_files_whole(small_disk):
    checkpoint.write(small_disk / "checkpoint.pt", {"small": torch.arange(100_000)})  # 0.8 MB
    before = (small_disk / "checkpoint.pt").read_bytes()
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.write(small_disk / "checkpoint.pt", {"large": torch.zeros(100_000)})
    assert str(small_disk / "checkpoint.pt") in str(error.value.filename)
    assert (small_disk / "checkpoint.pt").read_bytes() == before and len(list(small_disk.iterdir())) == 1


def test_a_run_whose_disk_fills_up_says_so_and_resumes_from_what_is_there(unbroken):
    """A write that fails at the third checkpoint stands in for the disk, so that this runs for anyone."""
    folder = unbroken.parent / "full"
    script = unbroken.parent / "full_disk.py"
    script.write_text(
        "import errno, checkpoint, cli, train\n"
        "write, calls = checkpoint.write, []\n"
        "def failing(path, state):\n"
        "    calls.append(path)\n"
        "    if len(calls) > 2: raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    write(path, state)\n"
        "checkpoint.write = failing\n"
        "cli.run(train.main)\n"
    )
    code, _, err = run(folder, script=script)
    assert code == 2 and "No space left on device" in err.splitlines()[-1] and "Traceback" not in err
    code, out, err = run(folder)
    assert code == 0 and "goes on" in out and "after step 20 " in out, err
    assert log(folder) == log(unbroken)


def test_finished_weights_stay_until_the_new_ones_are_saved(unbroken, monkeypatch):
    import train

    text = dataset.prepare(["Раз. Два. Три."] * 9, unbroken.parent / "cache", 300, 0.2, 1000)
    folder = unbroken.parent / "kept"
    folder.mkdir()
    (folder / "bpe_tokenizer.json").write_text("old"), (folder / "parameters.pt2").write_text("old")

    def full(path, state):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(OSError):
        train.save(train.LLM(300, 32, 2, 1, 16), text, folder)
    assert sorted((p.name, p.read_text()) for p in folder.iterdir()) == [
        ("bpe_tokenizer.json", "old"),
        ("parameters.pt2", "old"),
    ]


def test_a_lock_dies_with_its_process(tmp_path):
    hold = "import sys, time, checkpoint, pathlib; lock = checkpoint.lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", hold, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(cli.UserError, match="another run"):
        checkpoint.lock(tmp_path)
    process.kill()
    process.wait()
    checkpoint.lock(tmp_path).close()


@pytest.fixture(scope="module")
def float32(unbroken) -> Path:
    """train.py, in float32 whatever the processor has."""
    path = unbroken.parent / "float32.py"
    path.write_text(
        "import torch, cli, train\ntrain.choose_device = lambda: (torch.device('cpu'), torch.float32)\ncli.run(train.main)\n"
    )
    return path


def test_two_processes_train_as_one_and_go_on_as_one(unbroken, float32):
    plain = ["--dropout", 0, "--epochs", 1]
    one, two = unbroken.parent / "one", unbroken.parent / "two"
    assert run(one, *plain, script=float32)[0] == 0
    code, out, err = run(two, *plain, script=float32, launch=TORCHRUN)
    assert code == 0 and out.count("trained on") == 1 and "2 processes" in out, err
    losses = [[[float(row[i]) for i in (2, 3)] for row in log(folder)] for folder in (one, two)]
    assert torch.allclose(*map(torch.tensor, losses), rtol=0, atol=1e-4) and len(losses[0]) > 3

    # a killed worker ends the run, and one process goes on from what the other has left
    killed = unbroken.parent / "killed_worker"
    process = start(killed, *plain, script=float32, launch=TORCHRUN)
    wait_for(process, "tokens/s=")
    ours = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and of_group(int(pid), process.pid, b"RANK=1")]
    os.kill(ours[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0 and (killed / "checkpoint.pt").exists()
    code, out, err = run(killed, *plain, script=float32)
    assert code == 0 and "goes on" in out, err
    again = [[float(row[i]) for i in (2, 3)] for row in log(killed)]
    assert torch.allclose(torch.tensor(again), torch.tensor(losses[0]), rtol=0, atol=1e-4)

    code, _, err = run(two, "--batch_size", 7, launch=TORCHRUN)
    assert code != 0 and err.count("--batch_size 7 does not divide among 2 processes") == 1


def of_group(pid: int, group: int, variable: bytes) -> bool:
    """Whether a process is one that torchrun started in this group, with this in its environment."""
    try:
        descends = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[3]) == group or os.getpgid(pid) == group
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        return (descends or parent == group) and variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False


def test_a_killed_worker_is_started_again(unbroken, float32):
    folder = unbroken.parent / "restarted"
    process = start(folder, "--dropout", 0, "--epochs", 1, script=float32, launch=[*TORCHRUN, "--max-restarts=1"])
    wait_for(process, "tokens/s=")
    os.kill(
        [int(p) for p in os.listdir("/proc") if p.isdigit() and of_group(int(p), process.pid, b"RANK=0")][0], signal.SIGKILL
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and "goes on" in out and not (folder / "checkpoint.pt").exists(), err
    assert int(log(folder)[-1][0]) == int(log(unbroken)[-1][0]) // 3
