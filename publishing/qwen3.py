"""The model by the names of transformers and llama.cpp.

Tensor for tensor the model is a dense Qwen3 (2025, arXiv:2505.09388). V = vocab_size, D = d_model,
d = D / num_heads, M = the MLP's inner width:

  llm.py, all with .weight   shape    transformers, after "model."    source
  embedding                  (V, D)   embed_tokens; lm_head too      one matrix for both (arXiv:1608.05859)
  blocks.N.attention_norm    (D,)     layers.N.input_layernorm       norm before each part (arXiv:2002.04745)
  blocks.N.attention.
    qkv_proj                 (3D, D)  self_attn.{q,k,v}_proj (D, D)  causal attention heads (arXiv:1706.03762)
    q_norm, k_norm           (d,)     self_attn.{q,k}_norm           per head (arXiv:2010.04245)
    no tensor: rotate()               no tensor                      rotary positions (arXiv:2104.09864)
    o_proj                   (D, D)   self_attn.o_proj               heads side by side
  blocks.N.mlp_norm          (D,)     layers.N.post_attention_layernorm
  blocks.N.mlp.gate_up_proj  (2M, D)  mlp.{gate,up}_proj (M, D)      SwiGLU (arXiv:2002.05202)
  blocks.N.mlp.down_proj     (D, M)   mlp.down_proj                  no biases anywhere
  norm                       (D,)     norm                           all norms are RMSNorm (arXiv:1910.07467)
"""

from torch import Tensor

from llm import LLM, NORM_EPS, ROTARY_BASE

NAME = "A small language model of Russian"  # of an exported model, in its card and its GGUF file


def qwen3_tensors(model: LLM) -> dict[str, Tensor]:
    """The weights by their names in Qwen3ForCausalLM; lm_head.weight is the embedding, not stored again."""
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
        "eos_token_id": eos,  # no pad_token_id: transformers does not train its vector; <EOS> must be trained
        "dtype": "float32",
    }
