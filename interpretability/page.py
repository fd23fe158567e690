"""Makes the interactive page: one HTML file, with the model in it, that works offline.

The parts are in interpretability/page/. page.html names each of the other files where its text belongs, as in
@style.css@; make_page() puts them in, with the weights in float16, the tokenizer and the measurements.
"""

import base64
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from corpus.sentences import ABBREVIATIONS, OPENINGS
from corpus.tokenizer import EOS
from llm import LLM

PARTS = Path(__file__).with_name("page")


def make_page(model: LLM, tokenizer: Tokenizer, measurements: dict, prompt: str) -> str:
    """The page as HTML, opened on the prompt. measurements: what measurements.measure() returns.

    Nothing in the prompt or in the text can become markup: it is JSON without "<", in an element that the browser
    does not run, and the scripts show it as plain text only.
    """
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    weights = np.concatenate([tensor.ravel() for tensor in tensors.values()])
    neurons = measurements["neurons"]
    data = {
        "architecture": model.architecture(),
        "tokenizer": tokenizer_tables(tokenizer),
        "tensors": [[name, tensor.size] for name, tensor in tensors.items()],  # in the order of the weights
        "prompt": prompt,
        "measured": {name: value for name, value in measurements.items() if name != "neurons"},
        "neurons": {
            "shape": neurons["contexts"].shape,
            "contexts": to_base64(neurons["contexts"], np.uint32),
            "activations": to_base64(neurons["activations"], np.float32),
        },
    }
    data_json = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    data_json = data_json.encode("utf-8", "replace").decode()  # a broken byte of a command line becomes "?"

    html = join_parts().replace("@WEIGHTS@", to_base64(weights, np.float16), 1)
    return html.replace("@DATA@", data_json, 1)  # last, since the prompt may contain anything


def join_parts() -> str:
    """page.html with the style sheet and the scripts in it."""
    html = (PARTS / "page.html").read_text(encoding="utf-8")
    for path in sorted(PARTS.glob("*.css")) + sorted(PARTS.glob("*.js")):
        html = html.replace(f"@{path.name}@", path.read_text(encoding="utf-8"), 1)
    return html


def to_base64(array: np.ndarray, dtype: type) -> str:
    """The numbers of an array, converted to dtype, as base64 of their little-endian bytes."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    return base64.b64encode(np.ascontiguousarray(array, dtype=little_endian).tobytes()).decode()


def tokenizer_tables(tokenizer: Tokenizer) -> dict:
    """What tokenizer.js needs.

    "byte_ids": the token of each byte. "merges": for each merge three tokens (left, right, merged), all in one list,
    the merge learned first comes first. "abbreviations" and "openings": the word lists of corpus/sentences.py.
    """
    bpe = json.loads(tokenizer.to_str())["model"]
    vocabulary = bpe["vocab"]
    merges = []
    for pair in bpe["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair  # a string in files of older versions
        merges += [vocabulary[left], vocabulary[right], vocabulary[left + right]]
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "eos": tokenizer.token_to_id(EOS),
        "byte_ids": [vocabulary[letter] for letter in byte_letters()],
        "merges": merges,
        "abbreviations": sorted(ABBREVIATIONS),
        "openings": OPENINGS,
    }


def byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for each of the 256 bytes.

    A byte that is a visible character in Latin-1 stands for itself. The others get the characters from 256 on.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, next_code = [], 256
    for byte in range(256):
        if byte in visible:
            letters.append(chr(byte))
        else:
            letters.append(chr(next_code))
            next_code += 1
    return letters
