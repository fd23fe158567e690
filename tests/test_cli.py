"""The command line: flags, errors in one line, files that are replaced whole."""

import inspect
import os
import subprocess
import sys

import pytest
from helpers import ROOT, call, run, start_training

import params
from support.cli import UserError, atomic_write, make_parser, parse_args


def test_what_a_person_gets_wrong_is_one_line_and_exit_code_2(trained, tmp_path):
    (tmp_path / "columns.jsonl").write_text('{"text": "Раз. Два."}\n')
    (tmp_path / "empty.jsonl").write_text('{"sample": ""}\n')
    (tmp_path / "short.jsonl").write_text('{"sample": "Раз."}\n{"sample": "Два."}\n')
    (tmp_path / "parameters.pt2").write_bytes(b"broken")
    for script, arguments, message in [
        ("train.py", "--d_modl 8", "--d_modl"),
        ("train.py", "--d_model eight", "--d_model: invalid int value: 'eight'"),
        ("train.py", "--d_model 30 --num_heads 4", "--d_model 30 must divide into --num_heads 4"),
        ("train.py", "--learning_rate nan", "--learning_rate must be above 0"),
        ("train.py", f"--dataset {tmp_path}/none.jsonl", "no such file"),
        ("train.py", f"--dataset {tmp_path}/columns.jsonl", "no column 'sample', only text"),
        ("train.py", f"--dataset {tmp_path}/empty.jsonl", "empty"),
        ("train.py", f"--dataset {tmp_path}/short.jsonl", "too few for one window"),
        ("generate.py", f"да --out_dir {tmp_path}/none", "train.py"),
        ("generate.py", f"да --out_dir {tmp_path}", "parameters.pt2 does not hold"),
        ("generate.py", f"да --out_dir {trained} --temperature -1", "--temperature must be 0 or above"),
    ]:
        code, _, err = call(script, "--out_dir", tmp_path, *arguments.split())
        last = err.splitlines()[-1]
        assert code == 2 and message in last and last.startswith(script) and "Traceback" not in err, err
    assert (tmp_path / "parameters.pt2").read_bytes() == b"broken"  # nothing is lost


def test_the_flags_are_params_py(capsys):
    defaults = {name: value for name, value in vars(params).items() if not name.startswith("__")}
    with pytest.raises(SystemExit):
        make_parser("").parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    parsed = vars(make_parser("").parse_args([]))
    assert parsed == defaults
    assert all(f"--{name} " in text for name in defaults)
    assert "numbers in the vector that stands for a token" in text  # a comment of params.py


def test_of_a_name_that_params_py_has_twice_the_last_counts(monkeypatch):
    source = inspect.getsource(params) + "d_model = 96  # as a reader tries things\n"
    monkeypatch.setattr("inspect.getsource", lambda module: source)
    monkeypatch.setattr(params, "d_model", 96)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert parse_args(make_parser("")).d_model == 96


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    for target in (tmp_path / "no folder" / "file", tmp_path):
        with pytest.raises(OSError) as error, atomic_write(target):
            pass
        assert error.value.filename == str(target)  # and not the file beside it, of which nobody knows


@pytest.mark.parametrize("line", [
    "--d_model 30 --num_heads 4", "--num_heads 0", "--num_layers 0", "--learning_rate -1", "--vocab_size 256",
    "--max_seq_len 0", "--max_seq_len 131073", "--embedding_rate 0", "--weight_decay -1", "--epochs nan",
    "--epochs 1e300", "--d_model 99999999999", "--checkpoint_minutes -1", "--dropout 1", "--out_dir ",
    "--batch_size 1.5", "--seed -1", "--val_fraction 0", "--eval_every 0", "--grad_clip 0", "--warmup 2",
])  # fmt: skip
def test_values_that_cannot_be(line, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *line.split(" ")])
    with pytest.raises(UserError, match=line.split()[0]):
        parse_args(make_parser(""))


@pytest.mark.parametrize(
    "name, value, message",
    [("epochs", 2, None), ("epochs", "two", "--epochs"), ("d_model", 64.0, "--d_model"),
     ("out_dir", 5, "--out_dir")],
)  # fmt: skip
def test_wrong_types_in_params_py(monkeypatch, name, value, message):
    monkeypatch.setattr("params." + name, value)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    if message is None:
        assert getattr(parse_args(make_parser("")), name) == value
        return
    with pytest.raises(UserError, match=message):
        parse_args(make_parser(""))


def test_a_terminal_that_cannot_show_a_character_shows_question_marks(unbroken, tmp_path):
    (tmp_path / "text.txt").write_text("Волга — «река».\nЁж ест 🍎.\n" * 30, encoding="utf-8")
    flags = ["--out_dir", unbroken, "--max_new_tokens", 5]
    done = run("generate.py", "Волга — 🍎", *flags, PYTHONIOENCODING="cp1251")
    assert done.code == 0 and "?" in done.out and "Traceback" not in done.err
    folder = unbroken.parent / "in_ascii"
    flags = ["--epochs", 0.1, "--dataset", tmp_path / "text.txt"]
    process = start_training(folder, *flags, PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "?????" in out and (folder / "parameters.pt2").exists(), err
    done = run("evaluate.py", "--text", tmp_path / "text.txt", "--out_dir", folder, PYTHONIOENCODING="ascii")
    assert done.code == 0 and (folder / "evaluation.json").exists(), done.err


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_closed_terminal_ends_a_script_quietly(unbroken, closed):
    command = f"{sys.executable} generate.py Волга --max_new_tokens 3 --out_dir {unbroken} {closed}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr


@pytest.mark.parametrize("flag", ["--out_dir", "--dataset"])
def test_a_tilde_with_the_name_of_nobody(flag, tmp_path):
    done = call("train.py", "--out_dir", tmp_path, flag, "~nobody-of-this-name/x")
    assert done.code == 2 and "no user" in done.err and done.err.count("\n") == 1, done.err


def test_a_tilde_in_out_dir_is_the_home_folder(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--out_dir", "~/model"])
    assert parse_args(make_parser("")).out_dir == os.path.expanduser("~/model")
