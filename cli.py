"""What the scripts share with the person who runs them: params.py as command-line flags with their bounds checked,
errors that are one line and exit code 2, and files that are never left half-written."""

import argparse
import contextlib
import inspect
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import params


class UserError(Exception):
    """Something the person can mend. Its text says what is wrong and what to do; run() prints it as one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message.replace('argument ', '', 1)} (--help lists every flag)")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with a flag for every line of params.py: its name, the type of its value, its comment as the help."""
    lines = re.findall(r"^(\w+) = .*?  # (.*)$", inspect.getsource(params), re.MULTILINE)
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    group = made.add_argument_group("hyperparameters, with their values in params.py")
    for name, comment in lines:
        default = getattr(params, name)
        text = f"{comment} [{default}]".replace("%", "%%")
        group.add_argument(f"--{name}", type=type(default), default=default, metavar=type(default).__name__, help=text)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line as a namespace. Raises UserError where a hyperparameter has a value that cannot be."""
    args = made.parse_args()
    check(args, "not empty", "dataset text_column out_dir", bool)
    whole = "d_model num_heads num_layers max_seq_len batch_size eval_every eval_windows tokenizer_chars"
    check(args, "at least 1", whole, lambda value: value >= 1)
    check(args, "257 (the 256 bytes and <EOS>) or above, to a million", "vocab_size", lambda value: 257 <= value <= 10**6)
    check(args, "above 0 and finite", "epochs sample_epochs learning_rate grad_clip", lambda value: 0 < value < math.inf)
    check(args, "0 or above and below 1", "dropout adam_beta2", lambda value: 0 <= value < 1)
    check(args, "from 0 to 1", "warmup decay", lambda value: 0 <= value <= 1)
    check(args, "above 0 and at most 0.5", "val_fraction", lambda value: 0 < value <= 0.5)
    check(args, "0 or above and below 2^63", "seed", lambda value: 0 <= value < 2**63)
    if args.d_model % (2 * args.num_heads):
        raise UserError(
            f"--d_model {args.d_model} must divide into --num_heads {args.num_heads} heads of an even size, "
            "since rotary positions turn pairs of features"
        )
    return args


def check(args: argparse.Namespace, bound: str, names: str, holds) -> None:
    """Raise UserError unless holds(value) for each of the names in args; bound says in words what must hold."""
    for name in names.split():
        if not holds(getattr(args, name)):
            raise UserError(f"--{name} must be {bound}; it is {getattr(args, name)!r}")


def run(main) -> None:
    """main(), with what a person can mend told in one line and exit code 2; anything else is a bug and shows itself."""
    try:
        main()
    except BrokenPipeError:  # the reader of our output has gone, as in: python generate.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            error = f"{error.strerror}: {error.filename or 'a file of this run'}"
        line = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def replacing(path: Path):
    """Write a file beside and rename it: with replacing(path) as temporary: ...; path is whole, old or new, at any time."""
    handle, temporary = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
