"""model.gguf read back by the package gguf, and its tokenizer rebuilt with llama.cpp's pattern."""

import re
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers import ARTICLES, call, random_weights
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from corpus.sentences import split_sentences
from corpus.tokenizer import load_tokenizer, train_tokenizer
from llm import LLM
from publishing.gguf_file import gguf_file
from publishing.qwen3 import qwen3_config, qwen3_tensors
from support.cli import UserError

# "gpt-2" in llama.cpp's llama-vocab.cpp; white space that it leaves over is a piece, too
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    stressed = [text.replace("а", "а\u0301") for text in ARTICLES[:60]]  # so that tokens hold stress marks
    return train_tokenizer(ARTICLES[:60] + stressed, 600)


def read(tmp_path: Path, model: LLM, tokenizer: Tokenizer, quantize: str | None = None) -> gguf.GGUFReader:
    eos = tokenizer.token_to_id("<EOS>")
    content = gguf_file(qwen3_config(model, eos), qwen3_tensors(model), tokenizer, "mit", quantize)
    (tmp_path / "model.gguf").write_bytes(content)
    return gguf.GGUFReader(tmp_path / "model.gguf")


def value(reader: gguf.GGUFReader, key: str):
    return reader.fields[key].contents()


def small_model(tokenizer: Tokenizer, **shape) -> LLM:
    torch.manual_seed(0)
    shape = {"d_model": 64, "num_heads": 2, "num_layers": 3, "max_seq_len": 96} | shape
    return random_weights(LLM(tokenizer.get_vocab_size(), **shape))


def expected_tensors(model: LLM) -> dict[str, torch.Tensor]:
    """Our weights by llama.cpp's names, written out once more."""
    expected = {"token_embd": model.embedding.weight, "output_norm": model.norm.weight}
    for n, block in enumerate(model.blocks):
        D, hidden = model.d_model, block.mlp.down_proj.in_features
        qkv, gate_up = block.attention.qkv_proj.weight, block.mlp.gate_up_proj.weight
        expected |= {
            f"blk.{n}.attn_norm": block.attention_norm.weight,
            f"blk.{n}.attn_q": qkv[:D],
            f"blk.{n}.attn_k": qkv[D : 2 * D],
            f"blk.{n}.attn_v": qkv[2 * D :],
            f"blk.{n}.attn_q_norm": block.attention.q_norm.weight,
            f"blk.{n}.attn_k_norm": block.attention.k_norm.weight,
            f"blk.{n}.attn_output": block.attention.o_proj.weight,
            f"blk.{n}.ffn_norm": block.mlp_norm.weight,
            f"blk.{n}.ffn_gate": gate_up[:hidden],
            f"blk.{n}.ffn_up": gate_up[hidden:],
            f"blk.{n}.ffn_down": block.mlp.down_proj.weight,
        }
    return {f"{name}.weight": tensor.detach() for name, tensor in expected.items()}


@pytest.mark.parametrize("shape", [{}, {"d_model": 30, "num_heads": 5, "num_layers": 1}])
def test_every_tensor_is_there_bit_for_bit(shape, tokenizer, tmp_path):
    model = small_model(tokenizer, **shape)
    tensors = {tensor.name: tensor for tensor in read(tmp_path, model, tokenizer).tensors}
    expected = expected_tensors(model)
    assert tensors.keys() == expected.keys()
    for name, weight in expected.items():
        assert tensors[name].tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(tensors[name].data, weight.numpy()), name


def test_the_architecture(tokenizer, tmp_path):
    model = small_model(tokenizer)
    reader = read(tmp_path, model, tokenizer)
    assert value(reader, "general.architecture") == "qwen3" and value(reader, "general.license") == "mit"
    expected = {
        "vocab_size": model.vocab_size,
        "context_length": 96,
        "embedding_length": 64,
        "block_count": 3,
        "feed_forward_length": model.blocks[0].mlp.down_proj.in_features,
        "attention.head_count": 2,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "rope.freq_base": 10_000,
    }
    assert {name: value(reader, f"qwen3.{name}") for name in expected} == expected
    assert value(reader, "qwen3.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)


def test_the_vocabulary(tokenizer, tmp_path):
    reader = read(tmp_path, small_model(tokenizer), tokenizer)
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert {token: i for i, token in enumerate(tokens)} == tokenizer.get_vocab()
    eos = tokenizer.token_to_id("<EOS>")
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[eos] = gguf.TokenType.CONTROL
    assert value(reader, "tokenizer.ggml.token_type") == types
    assert value(reader, "tokenizer.ggml.bos_token_id") == value(reader, "tokenizer.ggml.eos_token_id") == eos
    assert value(reader, "tokenizer.ggml.add_bos_token") and not value(reader, "tokenizer.ggml.add_eos_token")


def test_sentences_get_the_same_ids_by_the_pattern_of_llama_cpp(tokenizer, tmp_path):
    """All but for what docs/use_your_model_elsewhere.md names: the space at the end, and stress marks."""
    reader = read(tmp_path, small_model(tokenizer), tokenizer)
    assert (value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    vocabulary = {token: i for i, token in enumerate(value(reader, "tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges")]
    other = Tokenizer(models.BPE(vocabulary, merges))
    split = pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])

    sentences = [sentence.rstrip() for text in ARTICLES for sentence in split_sentences(text)]
    assert len(sentences) > 1000
    for sentence in sentences:
        assert other.encode(sentence).ids == tokenizer.encode(sentence).ids, sentence
    assert other.encode("Шёл дождь. ").ids != tokenizer.encode("Шёл дождь. ").ids
    assert other.encode("за\u0301мок").ids != tokenizer.encode("за\u0301мок").ids


def test_q8_0_is_near_and_a_quarter_of_the_size(tokenizer, tmp_path):
    model = small_model(tokenizer)
    whole = sum(tensor.n_bytes for tensor in read(tmp_path, model, tokenizer).tensors)
    reader = read(tmp_path, model, tokenizer, "q8_0")
    assert value(reader, "general.file_type") == gguf.LlamaFileType.MOSTLY_Q8_0
    assert 0.25 < sum(tensor.n_bytes for tensor in reader.tensors) / whole < 0.28
    expected = expected_tensors(model)
    for tensor in reader.tensors:
        weight = expected[tensor.name].numpy()
        if weight.ndim == 1:
            assert np.array_equal(tensor.data, weight)
            continue
        assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
        near = gguf.dequantize(tensor.data, tensor.tensor_type)
        step = abs(weight).reshape(-1, 32).max(axis=1, keepdims=True) / 127  # of each 32 numbers
        assert (abs(near - weight).reshape(-1, 32) <= 0.6 * step).all()  # half a step, and scale rounding
    with pytest.raises(UserError, match="d_model 40"):
        read(tmp_path, small_model(tokenizer, d_model=40), tokenizer, "q8_0")


def copy_of(trained: Path, folder: Path) -> Path:
    for name in ("parameters.pt2", "bpe_tokenizer.json", "training_log.csv"):
        shutil.copy(trained / name, folder)
    return folder


def test_the_script_writes_it_and_takes_an_old_one_away(trained, tmp_path):
    out = copy_of(trained, tmp_path)
    done = call("export.py", "--gguf", "--out_dir", out, "--license", "cc-by-sa-4.0")
    assert done.code == 0 and "model.gguf" in done.out, done.err
    reader = gguf.GGUFReader(out / "huggingface" / "model.gguf")
    model, tokenizer = LLM.load(out / "parameters.pt2"), load_tokenizer(out / "bpe_tokenizer.json")
    assert value(reader, "tokenizer.ggml.tokens") == sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    assert value(reader, "general.license") == "cc-by-sa-4.0"
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert np.array_equal(embedding.data, model.embedding.weight.detach().numpy())
    assert "llama.cpp" in (out / "huggingface" / "README.md").read_text(encoding="utf-8")

    assert call("export.py", "--out_dir", out).code == 0  # the file would be of the model before
    assert not (out / "huggingface" / "model.gguf").exists()
    assert "llama.cpp" not in (out / "huggingface" / "README.md").read_text(encoding="utf-8")


def test_what_goes_wrong_is_one_line(trained, tmp_path, monkeypatch):
    out = copy_of(trained, tmp_path)

    def fails(message: str, *flags) -> None:
        done = call("export.py", "--out_dir", out, *flags)
        assert done.code == 2 and re.fullmatch(rf"export\.py: .*{message}.*\n", done.err), done.err
        assert not (out / "huggingface").exists() and not list(out.glob("*.tmp"))

    fails("give --gguf, too", "--quantize", "q8_0")
    fails("--quantize", "--gguf", "--quantize", "q4_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    fails("pip install gguf", "--gguf")
