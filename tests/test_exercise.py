"""exercise.py as a learner meets it: stubs, slips, a solution in other words than llm.py, a training run."""

import ast
import csv
import doctest
import inspect
import json
import re
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from exercise_solution import SLIPS, SOLUTION
from helpers import ARTICLES, SMALL, call, write_articles

import exercise
import llm
from corpus.sentences import split_sentences
from corpus.tokenizer import train_tokenizer
from dataset import TextDataset
from exercises import checks

BEGINNING, TITLES, STUBS = exercise.read_chapter()
FILE = "my_transformer.py"


def fill(solution: str = SOLUTION) -> str:
    """my_transformer.py with the parts of the solution in place of its ...."""
    text, bodies = BEGINNING + "\n\n\n" + "\n\n\n".join(STUBS.values()), solution.strip().split("\n---\n")
    dots = re.compile(r"^( +)\.\.\.$", re.MULTILINE)
    assert len(dots.findall(text)) == len(bodies)
    remaining = iter(bodies)
    return dots.sub(lambda place: re.sub("^", place[1], next(remaining), flags=re.MULTILINE), text)


def loaded(source: str) -> ModuleType:
    module = ModuleType("my_transformer")
    exec(compile(source, FILE, "exec"), vars(module))
    return module


def problem_of(step: str, mine) -> str:
    return exercise.attempt(lambda: getattr(checks, f"check_{step}")(mine))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_way_from_start_to_the_last_step(here):
    assert "[ ] merge" in call("exercise.py").out and not list(here.iterdir())
    assert call("exercise.py", "start").code == 0
    code, out, _ = call("exercise.py", "check")
    assert code == 1 and out.count("not written yet") == out.count("[ ]") == len(TITLES) == 13
    assert call("exercise.py").code == 0

    stubs = (here / FILE).read_text(encoding="utf-8")
    code, _, err = call("exercise.py", "start")
    assert code == 2 and err.count("\n") == 1 and "here already" in err
    assert (here / FILE).read_text(encoding="utf-8") == stubs

    (here / FILE).write_text(fill(), encoding="utf-8")
    began = time.process_time()
    code, out, err = call("exercise.py", "check")
    assert code == 0 and out.count("[x]") == 13 and f"train.py --model {FILE}" in out and not err, out
    assert time.process_time() - began < 10
    assert call("exercise.py", "check", 7).out.splitlines() == [out.splitlines()[6], out.splitlines()[-1]]


def test_a_file_of_a_windows_editor_is_read(here):
    call("exercise.py", "start")
    stubs = (here / FILE).read_text(encoding="utf-8")
    (here / FILE).write_bytes(b"\xef\xbb\xbf" + stubs.replace("\n", "\r\n").encode())
    code, out, err = call("exercise.py", "check")
    assert code == 1 and out.count("not written yet") == 13 and not err, out + err


def methods_of(source: str) -> dict[str, str]:
    """The code of each method of a source's first class, without comments, as ast.unparse() writes it."""
    body = ast.parse(source).body[0].body
    return {each.name: ast.unparse(each) for each in body if isinstance(each, ast.FunctionDef)}


def test_what_the_stubs_give_is_our_code():
    """What holds weights and knows their names: a stub that lags behind llm.py would make other weights."""
    steps = {"windows": TextDataset, "norm": llm.RMSNorm, "heads": llm.Attention, "mlp": llm.MLP}
    steps |= {"block": llm.Block, "model": llm.LLM}
    given = {"__init__", "rotary", "architecture", "get_extra_state", "set_extra_state"}
    for name, ours in steps.items():
        our, their = methods_of(inspect.getsource(ours)), methods_of(STUBS[name])
        for method in our.keys() & given:
            assert their[method] == our[method], (name, method)


OURS = [TextDataset, llm.RMSNorm, llm.rotary_tables, llm.rotate, llm.attention]
OURS += [llm.Attention, llm.MLP, llm.Block, llm.LLM, llm.sample]


def test_the_stubs_are_ours_without_the_cache():
    mine = loaded(BEGINNING + "\n" + "\n\n".join(STUBS.values()))
    assert (mine.ROTARY_BASE, mine.NORM_EPS) == (llm.ROTARY_BASE, llm.NORM_EPS)
    assert {name for name in vars(checks) if name.startswith("check_")} == {f"check_{key}" for key in TITLES}
    for ours in OURS:
        stub = getattr(mine, ours.__name__)
        assert ours.__doc__.rstrip() in stub.__doc__ and ">>> " in stub.__doc__
        pairs = [(ours, stub)]
        if isinstance(ours, type):
            methods = {name: each for name, each in vars(stub).items() if inspect.isfunction(each)}
            pairs = [(getattr(ours, name), method) for name, method in methods.items()]
            assert len(pairs) > 1
        for our, their in pairs:
            without = {"generate": {"step"}, "rotary": set()}.get(our.__name__, {"cache", "cached", "start"})
            names = [name for name in inspect.signature(our).parameters if name not in without]
            assert [name for name in inspect.signature(their).parameters if name not in without] == names
    assert "cache" not in "".join(code for name, code in STUBS.items()).replace("needs a cache", "")


def test_the_functions_of_this_repository_pass():
    def adam_step(parameters, averages, step, rate, betas, eps):
        optimizer = torch.optim.Adam(parameters, rate, betas, eps)
        for p, (m, v) in zip(parameters, averages):
            optimizer.state[p] = {"step": torch.tensor(step - 1.0), "exp_avg": m, "exp_avg_sq": v}
        optimizer.step()
        optimizer.zero_grad()

    ours = SimpleNamespace(
        **vars(llm),
        TextDataset=TextDataset,
        softmax=lambda x: x.softmax(-1),
        cross_entropy=lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
        adam_step=adam_step,
    )
    for step in TITLES:
        if step != "merge":  # train_tokenizer() merges in Rust: below
            assert problem_of(step, ours) == "", step


def test_merges_are_those_of_the_tokenizer():
    texts = ARTICLES[:30]
    tokenizer = train_tokenizer(texts, 257 + 10)
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    pieces = [list(piece) for sentence in sentences for piece, _ in split(sentence)]
    merge = loaded(fill()).merge
    for expected in json.loads(tokenizer.to_str())["model"]["merges"]:
        pair, pieces = merge(pieces)
        assert list(pair) == list(expected)


def test_the_examples_are_right():
    mine = loaded(fill())
    for name in re.findall(r"^(?:def|class) (\w+)", "\n".join(STUBS.values()), re.MULTILINE):
        finder = doctest.DocTestFinder(recurse=False)
        [test] = finder.find(getattr(mine, name), name, module=False, globs=vars(mine))
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0 and test.examples, name


@pytest.mark.parametrize("step, old, new, message", SLIPS)
def test_a_slip_is_named(step, old, new, message):
    assert old in SOLUTION
    problem = problem_of(step, loaded(fill(SOLUTION.replace(old, new))))
    assert message in problem and problem.count("\n") <= 1, problem


def test_each_step_has_three_slips():
    assert all(sum(slip[0] == step for slip in SLIPS) >= 3 for step in TITLES)


def test_what_differs_is_told_with_its_place():
    mine = loaded(fill(SOLUTION.replace("return powers /", "powers[1, 2, 3] *= 2\nreturn powers /")))
    problem = problem_of("softmax", mine)
    assert re.fullmatch(r"softmax\(x\)\[1, 2, [0-3]\] is 0\.\d+, expected 0\.\d+", problem)
    mine = loaded(fill(SOLUTION.replace("return powers /", "powers /")))
    none = "softmax(x) is None, expected a tensor (2, 3, 4)\nlikely: a return is missing"
    assert problem_of("softmax", mine) == none
    mine = loaded(fill(SOLUTION.replace("return -of_targets.mean()", "return log_shares")))
    assert problem_of("cross_entropy", mine) == "the loss is a tensor (2, 3, 5), expected a tensor ()"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("powers = torch", "while True:\n    pass\npowers = torch", "TimeoutError: still running"),
        ("powers = torch", "powers = troch", "NameError: name 'troch' is not defined"),
        ("powers = torch", "raise SystemExit('enough')\npowers = torch", "SystemExit: enough"),
        ("powers = torch", "return softmax(x)\npowers = torch", "RecursionError"),
        ("powers = torch", "raise ValueError('two\\nlines')\npowers = torch", "ValueError: two lines"),
    ],
)
def test_code_that_fails_is_told_in_one_line(here, monkeypatch, old, new, message):
    monkeypatch.setattr(exercise, "SECONDS", 0.2)
    source = fill(SOLUTION.replace(old, new))
    (here / FILE).write_text(source, encoding="utf-8")
    code, out, err = call("exercise.py", "check", "softmax")
    assert code == 1 and not err and out.count("\n") == 2 and message in out
    before_line = "\n".join(source.splitlines()[: int(re.search(r"line (\d+): ", out)[1])])
    assert before_line.rindex("\ndef ") == before_line.index("\ndef softmax(")


def test_a_step_waits_for_those_it_stands_on(here):
    (here / FILE).write_text(fill(SOLUTION.replace("* 2 * pair", "* pair")), encoding="utf-8")
    out = call("exercise.py", "check").out
    assert [line[5] for line in out.splitlines() if line[:3].strip()] == list("xxxxx!x!x!!xx")
    assert "waits for rotary" in out and "waits for heads" in out and "waits for block" in out


def test_what_a_person_gets_wrong_is_one_line_and_exit_code_2(here, monkeypatch):
    monkeypatch.setattr(exercise, "SECONDS", 0.2)
    for arguments, source, message in [
        (["check"], None, "there is no my_transformer.py here"),
        (["check"], "def f(:", "does not run: SyntaxError"),
        (["check"], "import nothing_like_this", "ModuleNotFoundError"),
        (["check"], "while True:\n    pass", "TimeoutError"),
        (["check", "14"], fill(), "there is no step '14'"),
        (["chekc"], fill(), "invalid choice: 'chekc'"),
    ]:
        if source:
            (here / FILE).write_text(source, encoding="utf-8")
        code, _, err = call("exercise.py", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err
    (here / FILE).write_text("# empty", encoding="utf-8")
    out = call("exercise.py", "check", "1").out
    assert "AttributeError: module 'my_transformer' has no attribute 'merge'" in out


def losses(folder) -> list[float]:
    with open(folder / "training_log.csv", encoding="utf-8") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def test_the_readers_model_trains_with_the_losses_of_ours(here, monkeypatch, capsys):
    source = fill(SOLUTION.replace("stream = F.dropout", "open('used', 'w').close()\nstream = F.dropout"))
    source = source.replace("self, vocab_size: int,", "self, *, vocab_size: int,")  # by keyword is enough
    (here / FILE).write_text(source, encoding="utf-8")
    text = write_articles(here / "text.jsonl", ARTICLES[:20])
    flags = ["--dataset", text, *SMALL, "--epochs", 0.6, "--warmup", 1, "--precision", "float32"]
    flags += ["--eval_every", 1, "--eval_windows", 1]
    for folder, more in (("ours", []), ("mine", ["--model", FILE])):
        done = call("train.py", *flags, *more, "--out_dir", folder)
        assert done.code == 0 and (folder == "mine" or not (here / "used").exists()), done.err
    ours, mine = losses(here / "ours"), losses(here / "mine")
    assert (here / "used").exists() and len(ours) >= 10
    assert mine[:10] == pytest.approx(ours[:10], abs=1e-4)
    assert call("generate.py", "Волга", "--out_dir", "mine", "--max_new_tokens", 5).code == 0

    monkeypatch.chdir(here / "mine")
    monkeypatch.setitem(sys.modules, "my_transformer", loaded(fill()))
    lines = exercise.python_blocks(exercise.CHAPTER.read_text(encoding="utf-8"))[-1]  # under "Train it"
    exec(lines, {})
    assert "[[1.0000, 0.0000," in capsys.readouterr().out and lines not in "".join(STUBS.values())


def test_a_model_that_cannot_be_trained_is_told_in_one_line(here):
    (here / "no_model.py").write_text("LM = 1\n")
    (here / "broken.py").write_text("class LLM(:\n")
    call("exercise.py", "start")
    for model, message in (
        ("nothing.py", "No such file or directory: "),
        ("no_model.py", "no_model.py has no class LLM"),
        ("broken.py", "invalid syntax"),
        (FILE, "the class LLM of my_transformer.py does not work, line "),
    ):
        done = call("train.py", "--model", model, "--out_dir", "out")
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err
