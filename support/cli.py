"""The command line: params.py as flags with checks, errors of one line, files that are never half-written."""

import argparse
import contextlib
import inspect
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import params

# The type of each hyperparameter. It cannot be read off the value in params.py, where people write 1 for 1.0.
TEXT = "dataset text_column out_dir precision compile".split()
WHOLE = (
    "d_model num_heads num_layers max_seq_len vocab_size batch_size eval_every eval_windows tokenizer_chars "
    "snapshots seed"
).split()
REAL = (
    "dropout val_fraction epochs sample_epochs learning_rate embedding_rate warmup decay grad_clip "
    "adam_beta1 adam_beta2 weight_decay checkpoint_minutes"
).split()

MAX_SEQ_LEN = 2**17  # the longest window; one that a damaged file asks for could take all memory


class UserError(Exception):
    """An error that the person can mend. run_script() prints its text, which says how, as one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message.replace('argument ', '', 1)} (--help lists every flag)")


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with a flag for every line of params.py: its name, its type, its comment as the help."""
    lines = re.findall(r"^(\w+) *= *.*?(?:\s# *(.*))?$", inspect.getsource(params), re.MULTILINE)
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=description, formatter_class=layout, allow_abbrev=False)
    group = parser.add_argument_group("hyperparameters, with their values in params.py")
    for name, comment in dict(lines).items():  # of a name assigned twice the last line counts, as in Python
        default = getattr(params, name)
        value_type = float if name in REAL else type(default)
        help_text = f"{comment} [{default}]".replace("%", "%%")
        group.add_argument(
            f"--{name}", type=value_type, default=default, metavar=value_type.__name__,
            help=help_text, action=Given,
        )
    return parser


class Given(argparse.Action):
    """Stores the value of a flag, and notes in args.given that the flag was given."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = getattr(namespace, "given", frozenset()) | {self.dest}


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line as a namespace; args.given holds the names of the hyperparameters that it sets.

    Raises UserError if a hyperparameter has an impossible value.
    """
    args = parser.parse_args()
    args.given = getattr(args, "given", frozenset())
    check_hyperparameters(args)
    args.out_dir = str(Path(args.out_dir).expanduser())
    return args


def check_hyperparameters(args: argparse.Namespace) -> None:
    """Raise UserError if a hyperparameter has an impossible value."""
    check(args, "text", TEXT, lambda x: type(x) is str)
    check(args, "a whole number", WHOLE, lambda x: type(x) is int)
    check(args, "a number", REAL, lambda x: type(x) in (int, float))
    check(args, "not empty and without a null character", TEXT, lambda x: x and "\0" not in x)
    counts = "d_model num_heads num_layers batch_size eval_every eval_windows tokenizer_chars".split()
    check(args, "at least 1 and below 2^31", counts, lambda x: 1 <= x < 2**31)
    check(args, f"at least 1 and at most {MAX_SEQ_LEN}", ["max_seq_len"], lambda x: 1 <= x <= MAX_SEQ_LEN)
    check(args, "from 0 to 100", ["snapshots"], lambda x: 0 <= x <= 100)
    check(args, "from 257 (<EOS> and 256 bytes) to a million", ["vocab_size"], lambda x: 257 <= x <= 10**6)
    check(args, "above 0 and at most a million", ["epochs", "sample_epochs"], lambda x: 0 < x <= 10**6)
    rates = ["learning_rate", "embedding_rate", "grad_clip"]
    check(args, "above 0 and finite", rates, lambda x: 0 < x < math.inf)
    check(args, "0 or above and finite", ["weight_decay", "checkpoint_minutes"], lambda x: 0 <= x < math.inf)
    check(args, "0 or above and below 1", ["dropout", "adam_beta1", "adam_beta2"], lambda x: 0 <= x < 1)
    check(args, "from 0 to 1", ["warmup", "decay"], lambda x: 0 <= x <= 1)
    check(args, "above 0 and at most 0.5", ["val_fraction"], lambda x: 0 < x <= 0.5)
    check(args, "0 or above and below 2^63", ["seed"], lambda x: 0 <= x < 2**63)
    check(args, "auto, float32 or bfloat16", ["precision"], lambda x: x in ("auto", "float32", "bfloat16"))
    check(args, "auto, on or off", ["compile"], lambda x: x in ("auto", "on", "off"))
    if args.d_model % (2 * args.num_heads):
        raise UserError(
            f"--d_model {args.d_model} must divide into --num_heads {args.num_heads} heads of an even size, "
            "since rotary positions turn pairs of features"
        )


def check(args: argparse.Namespace, requirement: str, names: list[str], holds: Callable) -> None:
    """Raise UserError unless holds(value) for each of the names in args; the requirement says it in words."""
    for name in names:
        if not hasattr(args, name):
            raise UserError(f"params.py has no line for {name}: write  {name} = ...  in it")
        if not holds(getattr(args, name)):
            raise UserError(f"--{name} must be {requirement}; it is {getattr(args, name)!r}")


def run_script(main: Callable[[], None]) -> None:
    """Run main(). An error that the person can mend becomes one line and exit code 2, a bug a traceback."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character that the terminal cannot show becomes "?"
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads our output any more, as in  python generate.py | head
        silence_closed_streams()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, ValueError):
            print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)  # what a shell reports for a command ended by Ctrl-C
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        message = one_line(error)
        if message is None:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes of torchrun one speaks
            with contextlib.suppress(OSError, ValueError):  # unless stderr is closed
                print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        sys.exit(2)


def open_closed_streams() -> None:
    """Where a script is started with its output closed, send that output to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


def silence_closed_streams() -> None:
    """Send what is still buffered to nowhere, so that Python's own flush at the end does not complain."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def one_line(error: Exception) -> str | None:
    """What to tell the person about an error, or None if it is a bug."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return (
            "not enough memory: train with a smaller --batch_size, --max_seq_len or --d_model, "
            "or generate fewer --num_samples"
        )
    if isinstance(error, RuntimeError):
        if "home directory" in text:  # Path.expanduser()
            return "a path begins with ~ and a name that no user of this machine has"
        if "probability tensor" in text:  # torch.multinomial()
            return "the model computes numbers that are not finite: train it with a smaller --learning_rate"
        return None
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'a file of this run'}"
    return " ".join(str(error).split())


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file whole or not at all:  with atomic_write(path) as temporary: ...  Renamed at the end."""
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        if os.name == "posix":  # a power cut must not lose the new name either
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        if not error.filename or str(error.filename).endswith(".tmp"):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write the file whole or not at all, indented and with Cyrillic as it is."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
