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

# Each hyperparameter's kind of value, whatever stands in params.py, which people edit
TEXT = "dataset text_column out_dir"
WHOLE = "d_model num_heads num_layers max_seq_len vocab_size batch_size eval_every eval_windows tokenizer_chars seed"
REAL = (
    "dropout val_fraction epochs sample_epochs learning_rate warmup decay grad_clip adam_beta2 checkpoint_minutes".split()
)


class UserError(Exception):
    """Something the person can mend. Its text says what is wrong and what to do; run() prints it as one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message.replace('argument ', '', 1)} (--help lists every flag)")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with a flag for every line of params.py: its name, the type of its value, its comment as the help."""
    lines = re.findall(r"^(\w+) *= *.*?(?:\s# *(.*))?$", inspect.getsource(params), re.MULTILINE)
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    group = made.add_argument_group("hyperparameters, with their values in params.py")
    for name, comment in lines:
        default = getattr(params, name)
        kind = float if name in REAL else type(default)
        text = f"{comment} [{default}]".replace("%", "%%")
        group.add_argument(f"--{name}", type=kind, default=default, metavar=kind.__name__, help=text)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line as a namespace. Raises UserError where a hyperparameter has a value that cannot be."""
    args = made.parse_args()
    check(args, "text", TEXT, lambda value: type(value) is str)
    check(args, "a whole number", WHOLE, lambda value: type(value) is int)
    check(args, "a number", " ".join(REAL), lambda value: type(value) in (int, float))
    check(args, "not empty and without a null character", TEXT, lambda value: value and "\0" not in value)
    whole = "d_model num_heads num_layers max_seq_len batch_size eval_every eval_windows tokenizer_chars"
    check(args, "at least 1 and below 2^31", whole, lambda value: 1 <= value < 2**31)
    check(args, "257 (the 256 bytes and <EOS>) or above, to a million", "vocab_size", lambda value: 257 <= value <= 10**6)
    check(args, "above 0 and at most a million", "epochs sample_epochs", lambda value: 0 < value <= 10**6)
    check(args, "above 0 and finite", "learning_rate grad_clip", lambda value: 0 < value < math.inf)
    check(args, "0 or above and finite", "checkpoint_minutes", lambda value: 0 <= value < math.inf)
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
        if not hasattr(args, name):
            raise UserError(f"params.py has no line for {name}: write  {name} = ...  in it")
        if not holds(getattr(args, name)):
            raise UserError(f"--{name} must be {bound}; it is {getattr(args, name)!r}")


def run(main) -> None:
    """main(), with what a person can mend told in one line and exit code 2; anything else is a bug and shows itself."""
    try:
        main()
    except BrokenPipeError:  # the reader of our output has gone, as in: python generate.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)  # what a shell reports of a command ended by Ctrl-C
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        no_memory = isinstance(error, MemoryError) or re.search(r"out of memory|allocate memory", str(error), re.IGNORECASE)
        if no_memory:
            error = "not enough memory: try a smaller --batch_size, --max_seq_len or --d_model"
        elif isinstance(error, RuntimeError):
            raise
        if isinstance(error, OSError) and error.strerror:
            error = f"{error.strerror}: {error.filename or 'a file of this run'}"
        line = " ".join(str(error).split())
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes of torchrun one speaks
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
        if os.name == "posix":  # the new name, too, is to outlast a power cut
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        error.filename = error.filename or str(path)  # a disk that is full does not say which file it had no room for
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)
