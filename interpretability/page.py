"""Makes the interactive page: one HTML file, with the model in it, that works offline.

The parts are in interpretability/page/. page.html names each of the other files where its text belongs, as in
@style.css@; make_page() puts them in, with the weights in float16, the tokenizer, the measurements, and as
many snapshots of the weights as fit, in 8 bits a number.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from corpus.sentences import ABBREVIATIONS, OPENINGS
from corpus.tokenizer import EOS
from interpretability.snapshots import MOST_SNAPSHOTS, choose_evenly, pack, packed_size, read_snapshot
from llm import LLM

PARTS = Path(__file__).with_name("page")
MOST_BYTES = 32_000_000  # of the page with its snapshots


def make_page(
    model: LLM, tokenizer: Tokenizer, measurements: dict, prompt: str,
    snapshots: Sequence[tuple[int, Path]] = (),
) -> str:  # fmt: skip
    """The page as HTML, opened on the prompt.

    measurements: what measurements.measure() returns; with snapshots, also "snapshots": snapshot_losses().
    snapshots: (step, path) of weights saved in training, first step first. With any, the page has a slider.

    Nothing in the prompt or in the text can become markup: it is JSON without "<", in an element that the
    browser does not run, and the scripts show it as plain text only.
    """
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    weights = np.concatenate([tensor.ravel() for tensor in tensors.values()])
    neurons = measurements["neurons"]
    data = {
        "architecture": model.architecture(),
        "tokenizer": tokenizer_tables(tokenizer),
        # In the order of the weights
        "tensors": [[name, tensor.size, len(tensor)] for name, tensor in tensors.items()],
        "snapshots": [],  # the steps of those in the page
        "prompt": prompt,
        "measured": {name: value for name, value in measurements.items() if name != "neurons"},
        "neurons": {
            "shape": neurons["contexts"].shape,
            "contexts": to_base64(neurons["contexts"], np.uint32),
            "activations": to_base64(neurons["activations"], np.float32),
        },
    }
    html = join_parts().replace("@WEIGHTS@", to_base64(weights, np.float16), 1)

    # The snapshots that fit, evenly spread over the run
    steps = [step for step, _ in snapshots]
    data["last_step"] = measurements["snapshots"]["step"][-1] if snapshots else 0  # only for the slider
    room = MOST_BYTES - len(html.encode()) - len(to_json(data).encode()) - 1000  # 1000: the snapshots' tags
    count = max(0, min(MOST_SNAPSHOTS, room // packed_size(model)))
    elements = []
    for i in choose_evenly(steps, data["last_step"], count):
        data["snapshots"].append(steps[i])
        packed = pack(read_snapshot(snapshots[i][1], model))
        elements.append(f'<script type="text/plain" class="snapshot">{packed}</script>')
    html = html.replace("@SNAPSHOTS@", "\n".join(elements), 1)

    return html.replace("@DATA@", to_json(data), 1)  # last, since the prompt may contain anything


def to_json(data: dict) -> str:
    """JSON that can stand in a script element."""
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return text.encode("utf-8", "replace").decode()  # a broken byte of a command line becomes "?"


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

    "byte_ids": the token of each byte. "merges": three tokens a merge (left, right, merged), all in one list,
    the merge learned first comes first. "abbreviations", "openings": the word lists of corpus/sentences.py.
    """
    bpe = json.loads(tokenizer.to_str())["model"]
    vocabulary = bpe["vocab"]
    merges = []
    for left, right in bpe["merges"]:
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

    A byte that is a visible character in Latin-1 stands for itself. The others get the characters from 256
    on.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
