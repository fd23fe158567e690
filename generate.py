"""Continue a prompt with the trained model:  python generate.py "Волга впадает в"

Reads the tokenizer and the weights that train.py left in out_dir, and prints the text as it comes.
For speed, export the model (python export.py --gguf) to llama.cpp: docs/use_your_model_elsewhere.md.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from corpus.tokenizer import EOS, encode_prompt
from support.checkpoint import load_model
from support.cli import check, make_parser, parse_args, run_script
from support.numpy_decoder import fastest_step


def text_stream(tokenizer: Tokenizer, ids: Iterable[int], prompt: str = "") -> Iterator[str]:
    """The text of the tokens as they come after the prompt, with an empty line after an article.

    A token may hold a part of a character's bytes: its text comes with the token that completes the
    character. Inside an article there is white space before <EOS>; without it, the article ends.
    """
    stream, eos, last_text = DecodeStream(skip_special_tokens=True), tokenizer.token_to_id(EOS), prompt or " "
    for token in ids:
        text = stream.step(tokenizer, token) or ""
        if token == eos and not (text or last_text)[-1].isspace():
            text += "\n\n"
        if text:
            yield text
            last_text = text


def first_sentences(ids: Iterable[int], eos: int, count: int) -> Iterator[int]:
    """The tokens of the first `count` sentences, or all tokens if count is 0."""
    ended = 0
    for token in ids:
        yield token
        ended += token == eos
        if token == eos and ended == count:
            return


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("prompt", nargs="?", default="", help="how the text begins [empty]")
    flag = parser.add_argument_group("generation").add_argument
    flag("--temperature", type=float, default=0.8, help="1: as the model predicts; 0: the likeliest [0.8]")
    flag("--top_k", type=int, default=50, help="draw from the k likeliest tokens; 0: from all [50]")
    flag("--top_p", type=float, default=1.0, help="draw from the likeliest that reach this probability [1.0]")
    flag("--max_new_tokens", type=int, default=200, help="length of a continuation at most [200]")
    flag("--num_samples", type=int, default=1, help="how many continuations, computed together [1]")
    flag("--sentences", type=int, default=0, help="stop after this many sentences; 0: do not [0]")
    args = parse_args(parser)
    check(args, "0 or above and finite", ["temperature"], lambda value: 0 <= value < math.inf)
    check(args, "above 0 and at most 1", ["top_p"], lambda value: 0 < value <= 1)
    check(args, "0 or above", ["top_k", "sentences"], lambda value: value >= 0)
    check(args, "from 1 to a million", ["max_new_tokens", "num_samples"], lambda value: 1 <= value <= 10**6)

    model, tokenizer = load_model(Path(args.out_dir))
    sizes = model.architecture().items()
    differences = [f"{name}={value}" for name, value in sizes if value != getattr(args, name)]
    if differences:
        names = ", ".join(differences)
        print(f"parameters.pt2 has {names}; params.py differs, and the file is right", file=sys.stderr)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    prompt, ids = encode_prompt(tokenizer, args.prompt)
    tokens = model.generate(
        torch.tensor([ids] * args.num_samples, device=device),
        args.temperature,
        args.top_k,
        args.top_p,
        torch.Generator(device).manual_seed(args.seed),
        fastest_step(model, args.num_samples),
    )
    tokens = itertools.islice(tokens, args.max_new_tokens)  # each (num_samples,)
    eos = tokenizer.token_to_id(EOS)
    if args.num_samples == 1:  # print the text as it comes
        print(prompt, end="", flush=True)
        ids = (token.item() for token in tokens)
        for text in text_stream(tokenizer, first_sentences(ids, eos, args.sentences), prompt):
            print(text, end="", flush=True)
        print()
    else:
        for ids in torch.stack(list(tokens), dim=1).tolist():
            text = "".join(text_stream(tokenizer, first_sentences(ids, eos, args.sentences), prompt))
            print(prompt + text, end="\n\n")


if __name__ == "__main__":
    run_script(main)
