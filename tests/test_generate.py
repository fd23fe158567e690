"""generate.py as a person starts it."""

import shutil

import torch
from helpers import call

from corpus.tokenizer import encode, load_tokenizer
from generate import text_stream
from llm import LLM


def test_a_prompt_is_continued(trained):
    ask = ["generate.py", "--out_dir", trained]
    code, out, err = call(*ask, "Волга впадает в", "--max_new_tokens", 30)
    assert code == 0 and out.startswith("Волга впадает в") and len(out) > 30, err
    assert call(*ask, "Волга впадает в", "--max_new_tokens", 30)[1] == out  # the seed decides
    assert call(*ask, "Волга впадает в", "--max_new_tokens", 30, "--seed", 7)[1] != out
    assert "d_model=64" in err and "num_layers=2" in err  # unlike params.py: said, and the file's are used

    code, out, _ = call(*ask, "Река", "--temperature", 0, "--max_new_tokens", 150)  # past the window of 64
    model, tokenizer = LLM.load(trained / "parameters.pt2"), load_tokenizer(trained / "bpe_tokenizer.json")
    ids = [tokenizer.token_to_id("<EOS>"), *tokenizer.encode("Река").ids]
    for _ in range(60 - len(ids)):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    assert out.startswith(tokenizer.decode(ids).rstrip("\ufffd").rstrip())  # the last may be half a letter

    code, out, _ = call(*ask, "Река", "--num_samples", 3, "--sentences", 1)
    samples = [sample for sample in out.split("\n\n") if sample.strip()]
    assert code == 0 and len(samples) >= 3 and len(set(samples)) > 1

    for prompt in ("", "🙂 שלום <EOS>\t", "слово " * 500, "Он ушёл."):
        code, out, err = call(*ask, prompt, "--max_new_tokens", 5)
        assert code == 0 and out.startswith(prompt.rstrip()), err


def test_a_model_whose_numbers_overflow_is_named(trained, tmp_path):
    shutil.copy(trained / "bpe_tokenizer.json", tmp_path)
    state = torch.load(trained / "parameters.pt2", weights_only=True)
    state["norm.weight"].fill_(3e38)
    torch.save(state, tmp_path / "parameters.pt2")
    done = call("generate.py", "Волга", "--out_dir", tmp_path)
    assert done.code == 2 and "not finite" in done.err and "Traceback" not in done.err, done.err


def test_an_article_that_ends_at_once_is_told_from_the_next(trained):
    tokenizer = load_tokenizer(trained / "bpe_tokenizer.json")
    ids = [tokenizer.token_to_id("<EOS>"), *encode(tokenizer, "Волга впадает в море. ")]
    assert "".join(text_stream(tokenizer, ids, "Он родился в 1799 г.")) == "\n\nВолга впадает в море. "
    assert "".join(text_stream(tokenizer, ids, "Он ушёл. ")) == "Волга впадает в море. "
