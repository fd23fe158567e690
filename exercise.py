"""Build it yourself: the model in thirteen steps, each checked as you write it (docs/build_it_yourself.md).

python exercise.py                          shows the steps and which of them pass
python exercise.py start                    writes my_transformer.py here, for you to fill in
python exercise.py check                    says what is wrong; check 7 or check attention: in that step alone
python train.py --model my_transformer.py   trains the model that you have built
"""

import argparse
import ast
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType

import torch

from exercises import checks
from support.cli import Parser, UserError, atomic_write, run_script

FILE = Path("my_transformer.py")
CHAPTER = Path(__file__).parent / "docs" / "build_it_yourself.md"
SECONDS = 3  # of computing that a check may take
MARKS = {"": "x", "not written yet": " "}  # of a step, by what is wrong with it

# The steps whose code a step calls; it waits until they pass
NEEDS = {
    "heads": ["norm", "rotary", "attention"],
    "block": ["norm", "heads", "mlp"],
    "model": ["norm", "block"],
}


def read_chapter() -> tuple[str, dict[str, str], dict[str, str]]:
    """How the file begins; the title of each step, and what is to be written in it, by the step's name."""
    # What precedes step 1; then of each step its name, its title and its text
    chapter = CHAPTER.read_text(encoding="utf-8")
    before, *steps = re.split(r"^## \d+\. (\w+): (.+)$", chapter, flags=re.MULTILINE)
    names, titles = steps[::3], steps[1::3]
    texts = [text.split("\n## ")[0] for text in steps[2::3]]  # without "Train it" after the last step
    stubs = {name: "\n\n\n".join(python_blocks(text)) for name, text in zip(names, texts)}
    return python_blocks(before)[0], dict(zip(names, titles)), stubs


def python_blocks(text: str) -> list[str]:
    """The code in the ```python blocks of a Markdown text."""
    return re.findall(r"^```python\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


def start(beginning: str, titles: dict[str, str], stubs: dict[str, str]) -> None:
    """Write my_transformer.py. Raises UserError if it is there."""
    if FILE.exists():
        raise UserError(f"{FILE} is here already: go on with  python exercise.py check  or move it away")
    steps = [f"\n\n# {i}. {name}: {titles[name]}\n\n\n{stubs[name]}\n" for i, name in enumerate(titles, 1)]
    with atomic_write(FILE) as temporary:
        temporary.write_text(beginning + "\n" + "".join(steps), encoding="utf-8")
    print(f"wrote {FILE}: fill in step 1, then run  python exercise.py check")


def attempt(action: Callable) -> str:
    """What goes wrong in the reader's file while action() runs, in a line or two; "" if nothing does."""
    deadline, old_trace = time.thread_time() + SECONDS, sys.gettrace()

    def trace(frame: FrameType, event: str, argument) -> Callable | None:
        if frame.f_code.co_filename != str(FILE):
            return None
        if time.thread_time() > deadline:  # asked at every line of the reader's file
            raise TimeoutError(f"still running after {SECONDS} seconds: a loop that does not end?")
        return trace

    try:
        torch.manual_seed(0)
        sys.settrace(trace)
        action()
    except checks.Wrong as wrong:
        return str(wrong)
    except (Exception, SystemExit) as error:
        calls = traceback.extract_tb(error.__traceback__)
        lines = [f"line {call.lineno}: " for call in calls if call.filename == str(FILE)]
        return f"{''.join(lines[-1:])}{type(error).__name__}: {' '.join(str(error).split()):.200}"
    finally:
        sys.settrace(old_trace)
    return ""


def check(stubs: dict[str, str]) -> dict[str, str]:
    """What is wrong with each step, "" if it passes. Raises UserError if the reader's file does not load."""
    if not FILE.exists():
        raise UserError(f"there is no {FILE} here: write it with  python exercise.py start")
    source = FILE.read_text(encoding="utf-8-sig", errors="replace")  # some Windows editors write a BOM first
    mine, problems = ModuleType(FILE.stem), {}
    problem = attempt(lambda: exec(compile(source, str(FILE), "exec"), vars(mine)))
    if problem:
        raise UserError(f"{FILE} does not run: {problem}")
    nodes = ast.parse(source).body
    written = {getattr(node, "name", ""): ast.get_source_segment(source, node) for node in nodes}
    for name, code in stubs.items():
        parts = [written.get(node.name, "") for node in ast.parse(code).body]
        unwritten = any(re.search(r"^ *\.\.\.$", part, re.MULTILINE) for part in parts)
        waits = next((f"waits for {need}" for need in NEEDS.get(name, []) if problems[need]), "")
        if unwritten:
            problems[name] = "not written yet"
        else:
            problems[name] = waits or attempt(lambda: getattr(checks, f"check_{name}")(mine))
    return problems


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default="show", choices=("show", "start", "check"))
    parser.add_argument("step", nargs="?", help="number or name of the only step to check")
    args = parser.parse_args()
    beginning, titles, stubs = read_chapter()
    if args.command == "start":
        return start(beginning, titles, stubs)
    chosen = {i: name for i, name in enumerate(titles, 1) if args.step in (None, name, str(i))}
    if not chosen:
        raise UserError(f"there is no step {args.step!r}: python exercise.py  shows them")
    problems = dict.fromkeys(titles, "not written yet")
    if args.command == "check" or FILE.exists():
        problems = check(stubs)
    for i, name in chosen.items():
        print(f"{i:3} [{MARKS.get(problems[name], '!')}] {name:14} {titles[name]}")
        if args.command == "check" and problems[name]:
            print(textwrap.indent(problems[name], " " * 8))
    if not any(problems.values()):
        print(f"all steps pass: train your model with  python train.py --model {FILE}")
    sys.exit(args.command == "check" and any(problems[name] for name in chosen.values()))


if __name__ == "__main__":
    run_script(main)
