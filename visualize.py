"""The trained model alive on one page:  python visualize.py "Столица Франции —"

Writes visualization.html to out_dir: one file that opens from disk in any browser, offline, with the model in it. It reads what
is typed and shows it going through the model. The page is visualize.html, filled with the weights in float16, the tokenizer
and what inside.py measures on the text that train.py had, so give it the flags that train.py had.
With --png FILE it draws the attention of all heads on the prompt instead.
"""

import base64
import json
from pathlib import Path

import numpy as np

import cli
import inside
from dataset import EOS, load_tokenizer
from generate import load_model
from llm import LLM
from sentences import ABBREVIATIONS, OPENINGS
from train import load_text

TEMPLATE = Path(__file__).with_name("visualize.html")
PROMPT = "Столицей Франции является город"


def bytes_of_letters() -> dict[str, int]:
    """The letter by which byte-level BPE writes each byte -> the byte: visible ones stand for themselves, others follow 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def tokenizer_tables(tokenizer) -> dict:
    """What the page needs of the tokenizer: the token of each byte, and each merge as three tokens, first learned first."""
    bpe = json.loads(tokenizer.to_str())["model"]
    vocabulary = bpe["vocab"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in bpe["merges"]]
    letters = {byte: letter for letter, byte in bytes_of_letters().items()}
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "eos": tokenizer.token_to_id(EOS),
        "byte_ids": [vocabulary[letters[byte]] for byte in range(256)],
        "merges": [vocabulary[part] for left, right in pairs for part in (left, right, left + right)],
        "abbreviations": sorted(ABBREVIATIONS),
        "openings": OPENINGS,
    }


def packed(array: np.ndarray, dtype) -> str:
    """The numbers of an array as base64, little-endian."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def page(model: LLM, tokenizer, measured: dict, prompt: str) -> str:
    """The page as HTML. measured: what inside.measure() gives. Nothing in prompt or text can become markup."""
    tensors = {name: value.numpy() for name, value in model.named_parameters() for value in [value.detach()]}
    neurons = measured["neurons"]
    data = {
        "architecture": model.get_extra_state(),
        "tokenizer": tokenizer_tables(tokenizer),
        "tensors": [[name, value.size] for name, value in tensors.items()],
        "prompt": prompt,
        "measured": {name: value for name, value in measured.items() if name != "neurons"},
        "neurons": {
            "shape": neurons["contexts"].shape,
            "contexts": packed(neurons["contexts"], np.uint32),
            "activations": packed(neurons["activations"], np.float32),
        },
    }
    weights = packed(np.concatenate([value.ravel() for value in tensors.values()]), np.float16)
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").encode("utf-8", "replace").decode()
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("@WEIGHTS@", weights, 1).replace("@DATA@", text, 1)  # the prompt last, whatever is in it


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f"the text that the page opens with [{PROMPT}]")
    parser.add_argument("--png", default="", metavar="FILE", help="draw the attention of all heads on the prompt into FILE")
    args = cli.parse(parser)
    out = Path(args.out_dir)
    model = load_model(out)
    tokenizer = load_tokenizer(out / "bpe_tokenizer.json", model)
    if args.png:
        inside.attention_png(model, tokenizer, args.prompt, Path(args.png))
        print(f"saved {args.png}")
        return
    text, _, _ = load_text(args)
    if text.tokenizer.to_str() != tokenizer.to_str():
        raise cli.UserError(f"the model in {out} was not trained on this text: give the --dataset that train.py had")
    html = page(model, tokenizer, inside.measure(model, tokenizer, text.train, text.val, out), args.prompt)
    with cli.replacing(out / "visualization.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"saved {out / 'visualization.html'}, {len(html.encode()) / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    cli.run(main)
