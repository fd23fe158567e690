"""Export the trained model to the layout of Hugging Face:  python export.py

It makes the folder huggingface/ in out_dir, which transformers, and everything else that reads safetensors, opens without
any code of ours: AutoTokenizer.from_pretrained("huggingface"), AutoModelForCausalLM.from_pretrained("huggingface").
Tensor for tensor the model is a dense Qwen3 (2025, arXiv:2505.09388). V = vocab_size, D = d_model, d = D / num_heads,
M = the MLP's inner width:

  llm.py, all with .weight   shape    transformers, after "model."    source
  embedding                  (V, D)   embed_tokens; lm_head too      one matrix for both (arXiv:1608.05859)
  blocks.N.attention_norm    (D,)     layers.N.input_layernorm       norm before each part (arXiv:2002.04745)
  blocks.N.attention.
    qkv_proj                 (3D, D)  self_attn.{q,k,v}_proj (D, D)  causal attention in heads (arXiv:1706.03762)
    q_norm, k_norm           (d,)     self_attn.{q,k}_norm           per head (arXiv:2010.04245)
    no tensor: rotate()               no tensor                      rotary positions (arXiv:2104.09864)
    o_proj                   (D, D)   self_attn.o_proj               heads side by side
  blocks.N.mlp_norm          (D,)     layers.N.post_attention_layernorm
  blocks.N.mlp.gate_up_proj  (2M, D)  mlp.{gate,up}_proj (M, D)      SwiGLU (arXiv:2002.05202), no biases anywhere
  blocks.N.mlp.down_proj     (D, M)   mlp.down_proj
  norm                       (D,)     norm                           RMSNorm, like all of them (arXiv:1910.07467)
"""

import csv
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
from tokenizers import Tokenizer, processors
from torch import Tensor

from corpus.tokenizer import EOS, load_tokenizer
from llm import LLM, NORM_EPS, ROTARY_BASE
from support.checkpoint import LOG, PARAMETERS, TOKENIZER, load_model
from support.cli import UserError, make_parser, parse_args, run_script

FOLDER = "huggingface"
CARD = """---
language: ru
library_name: transformers
pipeline_tag: text-generation
---
# A small language model of Russian

Trained from scratch with Mini Transformer from Scratch. Its architecture is that of the dense Qwen3, tensor for tensor.

```python
from transformers import pipeline

generate = pipeline("text-generation", "huggingface")  # this folder
print(generate("Волга впадает в", do_sample=False)[0]["generated_text"])
```

It continues a text to the end of the sentence, `<EOS>`. A prompt is the beginning of a sentence. Between two sentences the
model expects an `<EOS>`. It is one token only in `tokenizer("Шёл дождь. <EOS>Потом", split_special_tokens=False)`; elsewhere
it is read as five characters. Generation ends where the window is full.

| | |
|---|---|
"""


def qwen3_tensors(model: LLM) -> dict[str, Tensor]:
    """The weights by their names in Qwen3ForCausalLM. Its lm_head.weight is the embedding and is not stored again."""
    named = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    for n, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv_proj.weight.chunk(3)  # each (D, D)
        gate, up = block.mlp.gate_up_proj.weight.chunk(2)  # each (hidden, D)
        parts = {
            "input_layernorm": block.attention_norm.weight,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.q_norm": block.attention.q_norm.weight,
            "self_attn.k_norm": block.attention.k_norm.weight,
            "self_attn.o_proj": block.attention.o_proj.weight,
            "post_attention_layernorm": block.mlp_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.mlp.down_proj.weight,
        }
        named |= {f"model.layers.{n}.{name}.weight": tensor for name, tensor in parts.items()}
    return {name: tensor.detach().float().clone() for name, tensor in named.items()}


def qwen3_config(model: LLM, eos: int) -> dict:
    """The contents of config.json: the architecture, by its names in Qwen3ForCausalLM."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.blocks[0].mlp.down_proj.in_features,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_heads,
        "head_dim": model.d_model // model.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_seq_len,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "rope_theta": ROTARY_BASE,  # where transformers 4 looks for it
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": eos,
        "eos_token_id": eos,  # no pad_token_id: transformers would not train its vector, and <EOS> must be trained
        "dtype": "float32",
    }


def exported_files(model: LLM, tokenizer: Tokenizer, figures: dict[str, str]) -> dict[str, bytes]:
    """All files of the folder: name -> contents. The figures go into the model card."""
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
    contents = {"config": qwen3_config(model, eos), "tokenizer_config": tokenizer_config, "generation_config": generation_config}
    texts = {f"{name}.json": json.dumps(content, indent=2) for name, content in contents.items()}
    texts["tokenizer.json"] = tokenizer.to_str(pretty=True)
    texts["README.md"] = CARD + "".join(f"| {name} | {figure} |\n" for name, figure in figures.items())
    weights = safetensors.torch.save(qwen3_tensors(model), {"format": "pt"})
    return {**{name: text.encode() for name, text in texts.items()}, "model.safetensors": weights}


def figures_of_the_run(model: LLM, out: Path) -> dict[str, str]:
    """What the model card says of the model: its size, how it was trained, and how good it is, if that was measured."""
    figures = {
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "shape": f"{model.num_layers} layers, width {model.d_model}, {model.num_heads} heads",
        "window": f"{model.max_seq_len} tokens",
        "vocabulary": f"{model.vocab_size:,} entries, byte-level BPE",
    }
    try:
        with open(out / LOG, encoding="utf-8") as file:
            row = {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
        figures |= {
            "trained on": f"{row['tokens']:,.0f} tokens, {row['seconds'] / 60:.1f} minutes",
            "training loss at the end": f"{row['train_loss']:.3f} nats per token",
            "loss on held-out text": f"{row['val_loss']:.3f} nats per token, {row['bits_per_char']:.3f} bits per character",
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError):  # missing, or edited by hand
        pass
    try:
        results = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        weights = hashlib.blake2b((out / PARAMETERS).read_bytes(), digest_size=8).hexdigest()
        if results["weights"] == weights:  # otherwise they are of an earlier model
            if text := results.get("text"):
                best = text["bits"]["model"]
                figures["held-out text, sliding window"] = (
                    f"perplexity {best['perplexity']:.1f} per token, {best['bits_per_char']:.3f} bits per character"
                )
            if facts := results.get("facts"):
                figures["facts completed word for word"] = f"{facts['overall']['exact']:.0%}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return figures


IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in folders


def replace_folder(folder: Path, contents: dict[str, bytes]) -> None:
    """Write the files into a new folder, which then takes the place of the old one.

    Raises UserError if the old folder holds files that no export has written, since they would be lost.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: move it away first")
    if folder.exists():
        foreign = sorted({path.name for path in folder.iterdir()} - contents.keys() - IGNORED)
        if foreign:
            raise UserError(f"{folder} holds {', '.join(foreign)}, which export.py did not write: move it away first")
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
        error.filename = error.filename or str(folder)  # a full disk does not say which file it had no room for
        raise
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two renames
            os.rename(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    args = parse_args(make_parser(__doc__))
    out = Path(args.out_dir)
    model = load_model(out)
    tokenizer = load_tokenizer(out / TOKENIZER, model)
    contents = exported_files(model, tokenizer, figures_of_the_run(model, out))
    replace_folder(out / FOLDER, contents)
    for name, content in contents.items():
        print(f"{out / FOLDER / name}  {len(content):,} bytes")
    print(f'to open it:  AutoModelForCausalLM.from_pretrained("{out / FOLDER}")  of transformers')


if __name__ == "__main__":
    run_script(main)
