"""A prompt continued by the model, as one string: for the samples that train.py prints and keeps."""

import itertools

import torch
from tokenizers import Tokenizer

from corpus.tokenizer import EOS, encode_prompt
from llm import LLM
from support.numpy_decoder import fastest_step

PROMPTS = ("Столица Франции — город", "Волга впадает в", "Зимой медведь")


def continue_prompt(
    model: LLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> str:
    """The prompt, continued to the end of a sentence or by max_new_tokens. Temperature 0: the likeliest."""
    was_training = model.training
    model.eval()
    prompt, ids = encode_prompt(tokenizer, prompt)
    ids = torch.tensor([ids], device=model.embedding.weight.device)
    tokens = model.generate(ids, temperature, top_k=50, generator=generator, step=fastest_step(model, 1))
    tokens = (token.item() for token in itertools.islice(tokens, max_new_tokens))
    eos = tokenizer.token_to_id(EOS)
    text = prompt + tokenizer.decode(list(itertools.takewhile(lambda token: token != eos, tokens)))
    model.train(was_training)
    return text
