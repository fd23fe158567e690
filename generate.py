"""Continue a prompt with the trained model:  python generate.py "Волга впадает в"

Reads the tokenizer and the weights that train.py left in out_dir, and prints the text as it comes.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

import cli
from dataset import EOS, encode_prompt, load_tokenizer
from llm import LLM


def load_model(folder: Path) -> LLM:
    """The trained model in a folder. Raises UserError if there is none, or none that can be read."""
    try:
        return LLM.load(folder / "parameters.pt2")
    except FileNotFoundError as error:
        raise cli.UserError(f"{error.filename} is not there: train a model first with  python train.py") from error
    except ValueError as error:
        raise cli.UserError(str(error)) from error


def text_stream(tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of the tokens as it comes, a character only when all its bytes are there; an empty line after an article.

    Within an article there is white space before <EOS>; where there is none, the article ends.
    """
    eos, waiting, last = tokenizer.token_to_id(EOS), [], " "
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if token == eos and not (text or last)[-1].isspace():
            text += "\n\n"
        if text and (not text.endswith("\ufffd") or len(waiting) > 8):  # more bytes than a character has: it is broken
            yield text
            waiting, last = [], text
    yield tokenizer.decode(waiting)


def first_sentences(ids: Iterable[int], eos: int, count: int) -> Iterator[int]:
    """The tokens to the end of the count-th sentence, or all of them if count is 0."""
    for token in ids:
        yield token
        count -= token == eos
        if token == eos and count == 0:
            return


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("prompt", nargs="?", default="", help="what the text begins with [nothing]")
    group = parser.add_argument_group("generation")
    group.add_argument("--temperature", type=float, default=0.8, help="1: draw as the model predicts; 0: take the likeliest [0.8]")
    group.add_argument("--top_k", type=int, default=50, help="draw from the k likeliest tokens; 0: from all [50]")
    group.add_argument("--top_p", type=float, default=1.0, help="draw from the likeliest that together are so probable [1.0]")
    group.add_argument("--max_new_tokens", type=int, default=200, help="length of a continuation at most [200]")
    group.add_argument("--num_samples", type=int, default=1, help="continuations, computed side by side [1]")
    group.add_argument("--sentences", type=int, default=0, help="stop after so many sentences; 0: go on [0]")
    args = cli.parse(parser)
    cli.check(args, "0 or above and finite", "temperature", lambda value: 0 <= value < math.inf)
    cli.check(args, "above 0 and at most 1", "top_p", lambda value: 0 < value <= 1)
    cli.check(args, "0 or above", "top_k sentences", lambda value: value >= 0)
    cli.check(args, "at least 1", "max_new_tokens num_samples", lambda value: value >= 1)

    folder = Path(args.out_dir)
    model = load_model(folder)
    tokenizer = load_tokenizer(folder / "bpe_tokenizer.json", model)
    differ = [f"{name}={value}" for name, value in model.get_extra_state().items() if value != getattr(args, name)]
    if differ:
        print(f"parameters.pt2 has {', '.join(differ)}, params.py says otherwise: the file's are used", file=sys.stderr)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompt, ids = encode_prompt(tokenizer, args.prompt)
    tokens = model.to(device).generate(
        torch.tensor([ids] * args.num_samples, device=device),
        args.temperature,
        args.top_k,
        args.top_p,
        torch.Generator(device).manual_seed(args.seed),
    )
    tokens = itertools.islice(tokens, args.max_new_tokens)
    eos = tokenizer.token_to_id(EOS)
    if args.num_samples == 1:
        print(prompt, end="", flush=True)
        for text in text_stream(tokenizer, first_sentences((token.item() for token in tokens), eos, args.sentences)):
            print(text, end="", flush=True)
        print()
    else:
        for sample in torch.stack(list(tokens), dim=1).tolist():
            print(prompt + "".join(text_stream(tokenizer, first_sentences(sample, eos, args.sentences))), end="\n\n")


if __name__ == "__main__":
    cli.run(main)
