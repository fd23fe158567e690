"""How does the model know the case?  python -m experiments.case_circuit

Patches the heads, MLPs and positions of the trained model in pairs of sentences such as «без старого дома»
and «к старому дому», from text that was held out from training; reads case, number and gender with linear
probes; and turns endings by steering. Prints short tables, and writes case_circuit.json and case_circuit.png
to out_dir. With --clean and --corrupt, patches one pair of yours, such as  --clean "Он вышел без старого
дома" --corrupt "Он вышел к старому дому", and writes case_circuit_pair.json and case_circuit_pair.png.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from corpus.tokenizer import decode_sentences
from dataset import load_text_of
from evaluation.scoring import share
from interpretability.attention_map import token_label
from interpretability.case_pairs import Pair, find_pairs, pair_of_texts, targets_of
from interpretability.circuit_report import (
    draw_circuit,
    print_circuit,
    print_contrasts,
    print_probes,
    print_steering,
)
from interpretability.contributions import direct_shares
from interpretability.measurements import even_windows
from interpretability.patching import Patched, heads_and_mlps, patch, patch_stream, roles
from interpretability.probes import find_words, probe
from interpretability.steering import steer
from llm import LLM
from support.checkpoint import load_model
from support.cli import UserError, make_parser, parse_args, run_script, write_json

NAME = "case_circuit"


def read_flags() -> Namespace:
    parser = make_parser(__doc__)
    group = parser.add_argument_group(
        "a pair of your own, which must have equally many tokens before the endings"
    )
    group.add_argument("--clean", help="a text and its ending")
    group.add_argument("--corrupt", help="the text with another deciding word and another ending")
    args = parse_args(parser)
    if (args.clean is None) != (args.corrupt is None):
        raise UserError("--clean and --corrupt belong together: give both or none")
    return args


def measure_circuit(
    model: LLM, pairs: list[Pair], places: Callable[[Pair], dict[str, Sequence[int]]]
) -> tuple[dict, Patched]:
    """Patch every part and place, add up direct contributions, and print the tables.

    Returns what goes into the JSON file, and the scores with single parts patched.
    """
    parts = heads_and_mlps(model)
    single = patch(model, pairs, {str(part): [part] for part in parts}, "heads and MLPs")
    recovered = single.recovered()
    heads = sorted(
        (part for part in parts if part.kind == "head"), key=lambda part: -recovered[str(part)]["share"]
    )
    together = {"best three heads": heads[:3], "all other heads": heads[3:]}
    stream = patch_stream(model, pairs, places, "residual stream")
    direct, looks = direct_shares(model, pairs)
    result = {
        "num_layers": model.num_layers, "num_heads": model.num_heads, "places": list(places(pairs[0])),
        "clean_score": float(single.clean.mean()), "corrupt_score": float(single.corrupt.mean()),
        "patching": recovered | patch(model, pairs, together, "heads together").recovered(),
        "best_heads": [str(head) for head in heads], "stream": stream.recovered(),
        "direct": direct, "looks": looks,
    }  # fmt: skip
    print_circuit(result)
    return result, single


def by_contrast(pairs: list[Pair], single: Patched) -> dict[str, dict]:
    """Of each contrast: how often both endings are right, how far apart the scores are, the shares."""
    contrasts, found = np.array([pair.contrast for pair in pairs]), {}
    for name in sorted(set(contrasts)):
        chosen = contrasts == name
        right = (single.clean > 0) & (single.corrupt < 0)
        found[name] = {"both_right": share(right[chosen]), "difference": single.difference(chosen)}
        found[name]["patching"] = single.recovered(chosen)
    return found


def find_circuit(model: LLM, tokenizer: Tokenizer, args: Namespace) -> dict:
    """Everything, on pairs and words of held-out text."""
    corpus, _ = load_text_of(model, tokenizer, args)
    sentences = decode_sentences(tokenizer, corpus.val.tolist())
    targets = targets_of(sentences)
    pairs = [pair for pair in find_pairs(targets, tokenizer) if len(pair.clean) <= model.max_seq_len]
    pairs.sort(key=lambda pair: len(pair.clean))  # equal lengths in one batch need little padding
    words = [word for word in find_words(targets, tokenizer) if len(word.ids) <= model.max_seq_len]
    # Lemmas with a known gender: the probes of case and number have at least as many
    gendered = len({word.lemma for word in words if word.gender})
    if len(pairs) < 2 or gendered < 2:
        raise UserError(
            f"the held-out text gives {len(pairs)} pairs and {gendered} lemmas with a known gender: "
            "train on a longer text"
        )
    result, single = measure_circuit(model, pairs, roles)
    result |= {"pairs": len(pairs), "by_contrast": by_contrast(pairs, single)}
    print_contrasts(result)
    result["probes"] = probe(model, words)
    print_probes(result)
    windows = even_windows(corpus.val, model.max_seq_len, max_tokens=3_000, overlap=False)
    if steering := steer(model, pairs, windows):
        result["steering"] = steering
        print_steering(result)
    else:
        needed = "It takes a longer text, of which more is held out."
        print(f"\nNo steering: {len(pairs)} pairs are too few. {needed}")
    return result


def main() -> None:
    args = read_flags()
    began, folder = time.monotonic(), Path(args.out_dir)
    model, tokenizer = load_model(folder)
    if args.clean is not None:
        pair = pair_of_texts(tokenizer, args.clean, args.corrupt)
        if len(pair.clean) > model.max_seq_len:
            raise UserError(
                f"the texts have {len(pair.clean)} tokens, more than the window's {model.max_seq_len}"
            )
        labels = {f"{i} {token_label(tokenizer, token)}": [i] for i, token in enumerate(pair.clean)}
        result, _ = measure_circuit(model, [pair], lambda pair: labels)
    else:
        result = find_circuit(model, tokenizer, args)
    name = NAME if args.clean is None else f"{NAME}_pair"  # so that a pair does not replace what took minutes
    write_json(folder / f"{name}.json", result)
    draw_circuit(result, folder / f"{name}.png")
    print(f"\n{time.monotonic() - began:.0f} seconds; saved {folder / name}.json and {folder / name}.png")


if __name__ == "__main__":
    run_script(main)
