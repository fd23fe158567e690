"""Export the trained model to the layout of Hugging Face:  python export.py

It replaces the folder huggingface/ in out_dir. transformers, and whatever reads safetensors, opens it without
our code: AutoTokenizer.from_pretrained("huggingface"), AutoModelForCausalLM.from_pretrained("huggingface").
--gguf adds model.gguf, for llama.cpp. docs/use_your_model_elsewhere.md: what opens it and how to publish it.
"""

import json
import os
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import safetensors.torch
from tokenizers import Tokenizer, processors

from corpus.tokenizer import EOS
from llm import LLM
from publishing.gguf_file import GGUF, gguf_file
from publishing.model_card import UNKNOWN_LICENSE, license_of, model_card
from publishing.qwen3 import qwen3_config, qwen3_tensors
from support.checkpoint import load_model
from support.cli import UserError, make_parser, parse_args, run_script

FOLDER = "huggingface"


def exported_files(model: LLM, tokenizer: Tokenizer, card: str) -> dict[str, bytes]:
    """The files that transformers opens, and the model card: name -> contents."""
    eos = tokenizer.token_to_id(EOS)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(  # as encode_prompt() puts <EOS> before a text
        single=f"{EOS} $A", pair=f"{EOS} $A {EOS} $B", special_tokens=[(EOS, eos)]
    )
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "padding_side": "left",
        "model_max_length": model.max_seq_len,
        "split_special_tokens": True,  # "<EOS>" in a text is five characters, as in encode()
        "clean_up_tokenization_spaces": False,
    }
    generation_config = {  # the defaults of generate.py, with --sentences 1
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 1.0,
        "max_length": model.max_seq_len,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    contents = {"config": qwen3_config(model, eos), "tokenizer_config": tokenizer_config}
    contents["generation_config"] = generation_config
    texts = {f"{name}.json": json.dumps(content, indent=2) for name, content in contents.items()}
    texts["tokenizer.json"] = tokenizer.to_str(pretty=True)
    texts["README.md"] = card
    weights = safetensors.torch.save(qwen3_tensors(model), {"format": "pt"})
    return {**{name: text.encode() for name, text in texts.items()}, "model.safetensors": weights}


IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini", ".cache"}  # left by file managers and the hub's client


def replace_folder(folder: Path, contents: dict[str, bytes]) -> None:
    """Write the files into a new folder, which then takes the place of the old one.

    Raises UserError if the old folder holds files that no export has written, since they would be lost.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: move it away first")
    if folder.exists():
        foreign = sorted({path.name for path in folder.iterdir()} - contents.keys() - {GGUF} - IGNORED)
        if foreign:
            names = ", ".join(foreign)
            raise UserError(f"{folder} holds {names}, which export.py did not write: move it away first")
    temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".", suffix=".tmp", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        for name, content in contents.items():
            with open(new / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except OSError as error:
        error.filename = error.filename or str(folder)  # a full disk does not name the file
        raise
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two renames
            os.rename(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)


def read_flags() -> Namespace:
    parser = make_parser(__doc__)
    group = parser.add_argument_group("the export")
    group.add_argument("--gguf", action="store_true", help="write model.gguf too, in float32")
    group.add_argument("--quantize", choices=["q8_0"], help="with --gguf: 8-bit weights, a quarter the size")
    license_help = "of the weights, as the hub names it; your choice, within what the text's license allows"
    group.add_argument("--license", help=f"{license_help} [mit for the bundled text, else unknown]")
    group.add_argument("--hardware", help="what trained the model, for the card [the machine of the export]")
    args = parse_args(parser)
    if args.quantize and not args.gguf:
        raise UserError("--quantize is for model.gguf: give --gguf, too")
    return args


def main() -> None:
    args = read_flags()
    out = Path(args.out_dir)
    model, tokenizer = load_model(out)
    license = license_of(model, args.license)
    contents = exported_files(model, tokenizer, model_card(model, out, license, args.hardware, args.gguf))
    if args.gguf:
        config = qwen3_config(model, tokenizer.token_to_id(EOS))
        contents[GGUF] = gguf_file(config, qwen3_tensors(model), tokenizer, license, args.quantize)
    replace_folder(out / FOLDER, contents)
    for name, content in contents.items():
        print(f"{out / FOLDER / name}  {len(content):,} bytes")
    if license == UNKNOWN_LICENSE:
        advice = "choose one that the license of the text allows, with --license"
        print(f"the model card names no license: {advice}")
    print(f'to open it:  AutoModelForCausalLM.from_pretrained("{out / FOLDER}")  of transformers')


if __name__ == "__main__":
    run_script(main)
