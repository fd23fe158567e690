"""The exported model as one GGUF file, which llama.cpp and the programs built on it open, such as LM Studio.

GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is one file of key-value pairs, the tokenizer
among them, and tensors. llama.cpp knows the architecture as "qwen3": tensors are renamed and packed, no more.
"""

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from corpus.tokenizer import EOS
from publishing.qwen3 import NAME
from support.cli import UserError

GGUF = "model.gguf"
BLOCK = 32  # numbers that share a scale in q8_0


def gguf_file(
    config: dict, tensors: dict[str, Tensor], tokenizer: Tokenizer, license: str, quantize: str | None = None
) -> bytes:
    """The contents of model.gguf, in float32. quantize "q8_0": matrices in 8 bits, a scale per 32 numbers.

    config and tensors are those of publishing/qwen3.py, by the names of transformers. Raises UserError
    if the package gguf is missing, or if q8_0 does not fit the width.
    """
    try:
        import gguf  # here, since only this needs it
    except ImportError as error:
        raise UserError("--gguf needs the package gguf:  pip install gguf") from error
    width = config["hidden_size"]
    if quantize and width % BLOCK:
        raise UserError(
            f"q8_0 packs {BLOCK} numbers together, and d_model {width} is no multiple: leave out --quantize"
        )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GGUF
        writer = gguf.GGUFWriter(path, "qwen3")
        writer.add_name(NAME)
        writer.add_languages(["ru"])
        writer.add_license(license)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantize else gguf.LlamaFileType.ALL_F32)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

        # The architecture
        writer.add_vocab_size(config["vocab_size"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(width)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])

        # The tokenizer. "gpt-2" names a pattern of llama.cpp. It cuts a Russian sentence as ours does, but
        # for two things: combining marks are punctuation to it, and a space at the end is a piece of its own.
        vocabulary = tokenizer.get_vocab()
        in_order = sorted(vocabulary, key=vocabulary.get)
        types = [gguf.TokenType.CONTROL if token == EOS else gguf.TokenType.NORMAL for token in in_order]
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(in_order)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(config["bos_token_id"])
        writer.add_eos_token_id(config["eos_token_id"])
        writer.add_add_bos_token(True)  # as encode_prompt() puts <EOS> before a text
        writer.add_add_eos_token(False)

        # The tensors. None is permuted: rotary positions turn the same feature pairs in llama.cpp's qwen3.
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
        for name, tensor in tensors.items():
            packs = quantize and tensor.ndim == 2  # norms stay as they are
            kind = gguf.GGMLQuantizationType.Q8_0 if packs else gguf.GGMLQuantizationType.F32
            packed = gguf.quantize(tensor.numpy(), kind)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=kind)

        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()
