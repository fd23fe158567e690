"""The model card, README.md of the exported folder: what the model is, how it was trained and how good it is.

The hub reads the metadata at its top (https://huggingface.co/docs/hub/model-cards): license, language, data
set, and the measured results as a "model-index". A card is public, so no path of this machine gets into it.
"""

import os
import platform
import re
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData

from corpus.sources import BUNDLED, is_hub_name
from evaluation.report import HELD_OUT, load_results
from llm import LLM
from publishing.qwen3 import NAME
from support.cli import UserError
from support.training_log import last_row

UNKNOWN_LICENSE = "unknown"
LICENSES = {BUNDLED: "mit"}  # of texts; the bundled one was written for this project and has its license

CARD = f"""\
# {NAME}

Trained from scratch with Mini Transformer from Scratch. Its architecture is that of the dense Qwen3, tensor
for tensor.

```python
from transformers import pipeline

generate = pipeline("text-generation", "huggingface")  # this folder
print(generate("Волга впадает в", do_sample=False)[0]["generated_text"])
```

It continues a text to the end of the sentence, `<EOS>`. A prompt is the beginning of a sentence. Between two
sentences the model expects an `<EOS>`. It is one token only in
`tokenizer("Шёл дождь. <EOS>Потом", split_special_tokens=False)`; elsewhere it is read as five characters. The
space at a sentence's end belongs to the full stop's token, but only at the end of the string or before such
an `<EOS>`. Generation ends where the window is full.

It cannot answer questions or follow instructions, and it makes up what it does not know. Do not take a fact
from it.
"""
GGUF_SECTION = """
## In llama.cpp

`llama-completion -m model.gguf -no-cnv -n 40 -p "Волга впадает в"`, or any other program that opens GGUF.
llama.cpp puts the first `<EOS>` before the prompt itself, and reads an `<EOS>` in it as the end of a
sentence: write `Шёл дождь.<EOS>Потом`, without a space, since llama.cpp never joins a space to the full stop
before it. Its tokenizer takes stress marks for punctuation (`за́мок`), so write words without them.
"""


def model_card(model: LLM, folder: Path, license: str, hardware: str | None, has_gguf: bool) -> str:
    """The card of the model in a folder, with what training_log.csv and evaluation.json say of it."""
    results = measured_results(model, folder)
    data = ModelCardData(
        language="ru",
        license=license,
        datasets=[training_text(model)] if is_hub_name(training_text(model)) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        model_name=NAME,
        eval_results=[result for result, _ in results] or None,
    )
    figures = figures_of_the_run(model, folder)
    figures["hardware" if hardware else "hardware of the export"] = hardware or this_machine()
    figures["license of the weights"] = f"{license}, within what the license of the text allows"

    lines = ["---", data.to_yaml(), "---", CARD, "| | |", "|---|---|"]
    lines += [f"| {name} | {figure} |" for name, figure in figures.items()]
    if results:
        lines += ["", "| measured | on | model | to compare |", "|---|---|---|---|"]
        for result, comparison in results:
            value = result.metric_value
            shown = f"{value:.1%}" if result.metric_type == "accuracy" else f"{value:.4g}"
            lines.append(f"| {result.metric_name} | {result.dataset_name} | {shown} | {comparison} |")
    return "\n".join(lines) + "\n" + (GGUF_SECTION if has_gguf else "")


# The text and its license


def license_of(model: LLM, chosen: str | None) -> str:
    """The license of the weights, by its name on the hub: the one chosen, or else that of the text if known.

    Raises UserError if the hub can have no such name.
    """
    license = chosen if chosen is not None else LICENSES.get(training_text(model), UNKNOWN_LICENSE)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UserError(f"--license {license!r} is no name of the hub's list: mit, cc-by-sa-4.0 and the like")
    return license


def training_text(model: LLM) -> str:
    """The --dataset that the model was trained on, "" for older weights, which do not say."""
    return str(model.trained_on.get("settings", {}).get("dataset", ""))


def public_name(name: str) -> str:
    """The name of a text as the card shows it: of a path, its last part."""
    return name if is_hub_name(name) else Path(name).name or "the training text"


# What was measured


def figures_of_the_run(model: LLM, folder: Path) -> dict[str, str]:
    """The model's size, and how it was trained, as its log says."""
    figures = {
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "shape": f"{model.num_layers} layers, width {model.d_model}, {model.num_heads} heads",
        "window": f"{model.max_seq_len} tokens",
        "vocabulary": f"{model.vocab_size:,} entries, byte-level BPE",
        "text": public_name(training_text(model)),
    }
    try:
        row = last_row(folder)
        figures |= {
            "trained on": f"{row['tokens']:,.0f} tokens, {row['seconds'] / 60:.1f} minutes",
            "training loss at the end": f"{row['train_loss']:.3f} nats per token",
            "loss on held-out text": f"{row['val_loss']:.3f} nats per token, "
            f"{row['bits_per_char']:.3f} bits per character",
        }
    except (UserError, KeyError):  # edited by hand, or missing
        pass
    return figures


def measured_results(model: LLM, folder: Path) -> list[tuple[EvalResult, str]]:
    """What evaluate.py has measured of these weights: each result, and in words what to compare it with."""
    results, held_out = load_results(folder), HELD_OUT + training_text(model)
    measured = []
    try:
        if text := results.get("text"):
            model_bits, bigram, xz = (text["bits"][name] for name in ("model", "bigram counts", "xz"))
            comparison = f"bigram counts {bigram['bits_per_char']:.3f}, xz {xz['bits_per_char']:.3f}"
            per_char = model_bits["bits_per_char"]
            result = eval_result(text["name"], "bits_per_character", "bits per character", per_char)
            measured.append((result, comparison))
            result = eval_result(text["name"], "perplexity", "perplexity per token", model_bits["perplexity"])
            measured.append((result, f"bigram counts {bigram['perplexity']:.1f}"))
        if facts := results.get("facts"):
            exact = facts["overall"]["exact"]
            result = eval_result(facts["name"], "accuracy", "facts completed word for word", exact)
            measured.append((result, ""))
        if (pairs := results.get("pairs")) and pairs["overall"]["count"]:
            result = eval_result(pairs["name"], "accuracy", "minimal pairs", pairs["overall"]["accuracy"])
            measured.append((result, "chance 50%"))
        if (cases := results.get("cases")) and cases["overall"]["count"]:
            result = eval_result(held_out, "accuracy", "case endings", cases["overall"]["accuracy"])
            measured.append((result, f"chance {cases['chance']:.1%}"))
    except (KeyError, TypeError, ValueError, AttributeError):  # edited by hand, or of an earlier version
        pass
    return measured


def eval_result(text: str, metric_type: str, metric_name: str, value: float) -> EvalResult:
    """A result in the hub's format. The text is named as in evaluation.json."""
    held_out = text.startswith(HELD_OUT)
    text = public_name(text.removeprefix(HELD_OUT))
    name = "the bundled encyclopedia" if text == BUNDLED else text
    return EvalResult(
        task_type="text-generation",
        dataset_type=text,
        dataset_name=f"{name}, held-out articles" if held_out else name,
        dataset_split="held-out articles" if held_out else None,
        metric_type=metric_type,
        metric_name=metric_name,
        metric_value=round(float(value), 5),
    )


def this_machine() -> str:
    """The GPU, or the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        processor = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or a processor without a name
        processor = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores, {processor}"
