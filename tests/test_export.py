"""The exported folder in transformers, whose Qwen3 others wrote: the same numbers, ids and texts as ours."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import ARTICLES, ROOT, call
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import export
from corpus.sentences import split_sentences
from corpus.tokenizer import encode_prompt, load_tokenizer, tokenizer_key, train_tokenizer
from dataset import TextDataset, encode
from llm import LLM, Cache
from publishing.qwen3 import qwen3_tensors
from support.cli import UserError

NAMES = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
NAMES |= {"tokenizer.json", "tokenizer_config.json"}
LOG = (
    "step,tokens,seconds,train_loss,val_loss,bits_per_char,learning_rate,tokens_per_second\n"
    "7,57344,90,3.25,4.56789,2.3456,0.1,8000\n"
)


def run(*arguments, cwd=ROOT, **env) -> tuple[int, str, str]:
    """A Python command without network: exit code, stdout, stderr."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", **env}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def theirs(folder: Path, **options):
    """The folder as transformers opens it, by our class of nothing: model and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def articles() -> list[str]:
    return ARTICLES[:60]


@pytest.fixture(scope="module")
def tokenizer(articles):
    return train_tokenizer(articles, 500)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, articles, tokenizer) -> Path:
    """A folder with a model that knows three articles nearly by heart, and its export."""
    out = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = LLM(tokenizer.get_vocab_size(), d_model=64, num_heads=4, num_layers=2, max_seq_len=256)
    ids = [i for article in articles[:3] for i in encode(tokenizer, article)]
    inputs, targets = map(torch.stack, zip(*(TextDataset(ids, 128)[i] for i in range(8))))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = model.state_dict()
    state["_extra_state"]["tokenizer"] = tokenizer_key(tokenizer)
    torch.save(state, out / "parameters.pt2")
    tokenizer.save(str(out / "bpe_tokenizer.json"))
    (out / "training_log.csv").write_text(LOG)
    code, stdout, err = call("export.py", "--out_dir", out)
    assert code == 0 and "huggingface" in stdout, err
    return out


def random_model(seed: int, vocab_size: int) -> LLM:
    """An architecture drawn from the seed, none of its weights zero or one."""
    draw = random.Random(seed)
    heads, size = draw.randint(1, 5), 2 * draw.randint(1, 10)
    torch.manual_seed(seed)
    model = LLM(vocab_size, heads * size, heads, draw.randint(1, 4), draw.randrange(257, 320, 2)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.5 if "embedding" in name else 1.5 * parameter.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize("seed", range(8))
def test_random_models_compute_the_same(seed, tokenizer, tmp_path):
    model = random_model(seed, tokenizer.get_vocab_size())
    export.replace_folder(tmp_path / "folder", export.exported_files(model, tokenizer, card=""))
    other, _ = theirs(tmp_path / "folder", attn_implementation=("sdpa", "eager")[seed % 2])
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in model.parameters())

    for T in (1, 2, 7, 33, model.max_seq_len):  # logits
        ids = torch.randint(model.vocab_size, (2, T))
        with torch.no_grad():
            ours, expected = model(ids), other(ids).logits
        assert (ours - expected).abs().max() < 1e-4 and expected.std() > 0.5

    ids = torch.randint(model.vocab_size, (1, 40))  # with a cache on both sides, in pieces
    cache, their_cache = Cache(model, 1), DynamicCache(config=other.config)
    with torch.no_grad():
        for piece in ids.split([1, 20, 1, 18], dim=1):
            ours = model.logits(model.residual(piece, cache))
            expected = other(piece, past_key_values=their_cache, use_cache=True).logits
            assert (ours - expected).abs().max() < 1e-4

    ids = torch.randint(model.vocab_size, (3, 21))  # the loss and its gradients
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    their_loss = other(ids, labels=ids).loss
    assert abs(loss - their_loss).item() < 1e-4
    loss.backward()
    their_loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    expected = {name: parameter.grad for name, parameter in other.named_parameters()}  # the tied matrix once
    ours = qwen3_tensors(model)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert (gradient - expected[name]).abs().max() < 1e-4 * max(1, expected[name].abs().max()), name
        assert expected[name].abs().max() > 1e-3, name


@pytest.mark.parametrize("seed", [100, 101, 102])
def test_200_greedy_tokens_of_random_models_are_the_same(seed, tokenizer, tmp_path):
    model = random_model(seed, tokenizer.get_vocab_size())
    export.replace_folder(tmp_path / "folder", export.exported_files(model, tokenizer, card=""))
    other, _ = theirs(tmp_path / "folder")
    prompt = torch.randint(1, model.vocab_size, (2, 11))
    stream = model.generate(prompt, temperature=0)
    ours = torch.stack([next(stream) for _ in range(200)], dim=1)
    other.generation_config.eos_token_id = None  # ours goes on past it too
    greedy = {"do_sample": False, "max_new_tokens": 200, "max_length": None}
    expected = other.generate(prompt, attention_mask=torch.ones_like(prompt), **greedy)
    assert expected[:, 11:].tolist() == ours.tolist() and len(ours.unique()) > 10


def test_a_trained_model_writes_the_same_text(trained, articles):
    model, tokenizer = LLM.load(trained / "parameters.pt2"), load_tokenizer(trained / "bpe_tokenizer.json")
    other, their_tokenizer = theirs(trained / "huggingface")
    prompt = " ".join(articles[0].split()[:2])
    _, ids = encode_prompt(tokenizer, prompt)
    stream = model.generate(torch.tensor([ids]), temperature=0)
    text = prompt + tokenizer.decode([next(stream).item() for _ in range(200)])
    other.generation_config.eos_token_id = None
    inputs = their_tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    written = other.generate(**inputs, do_sample=False, max_new_tokens=200, max_length=None)[0]
    assert their_tokenizer.decode(written, skip_special_tokens=True) == text
    assert written.shape == (len(ids) + 200,)
    assert text.startswith(articles[0][:20])  # it is a text


def test_a_pipeline_stops_where_generate_does_after_a_sentence(trained, articles, tmp_path):
    """No code of ours on its path, no network, and the folder elsewhere than where it was made."""
    (trained / "huggingface").rename(tmp_path / "elsewhere")
    prompts = [" ".join(articles[i].split()[:n]) for i in range(3) for n in (1, 3)]
    prompts += ["", "🙂 Latin <EOS> 1999"]
    code = (
        "import json, sys; from transformers import pipeline; "
        "write = pipeline('text-generation', 'elsewhere')\n"
        "print(json.dumps([write(prompt, do_sample=False)[0]['generated_text'] "
        "for prompt in json.loads(sys.argv[1])]))"
    )
    status, out, err = run("-c", code, json.dumps(prompts), cwd=tmp_path)
    (tmp_path / "elsewhere").rename(trained / "huggingface")
    assert status == 0, err
    ended = 0
    for prompt, text in zip(prompts, json.loads(out.splitlines()[-1])):
        flags = ["--temperature", 0, "--sentences", 1, "--max_new_tokens", 200]
        ours = call("generate.py", prompt, "--out_dir", trained, *flags).out
        if len(encode(load_tokenizer(trained / "bpe_tokenizer.json"), text)) < 200:  # else the window ends it
            assert ours.rstrip() == text.rstrip()  # white space at the end: ours marks the end of an article
            ended += 1
    assert ended > len(prompts) / 2


def random_string(draw: random.Random, words: list[str]) -> str:
    """Up to 12 in a row: Russian and Latin words, emoji, controls, spaces, marks, chars of any script."""
    emoji = ["🙂", "👨‍👩‍👧‍👦", "🇷🇺", "❤️", "👍🏽", "\u200d", "\ufeff", "\u202e"]
    marks = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", ".", "…", " — ", "«", "»"]
    marks += ["<EOS>", "<EOS", "ё", "и\u0306", "1999", "½", "''"]
    parts = []
    for _ in range(draw.randint(0, 12)):
        # Surrogates are no text
        anything = chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
        control = chr(draw.choice([*range(32), *range(127, 160)]))
        latin = "".join(draw.choices("abcXYZéñßøł", k=draw.randint(1, 8)))
        kinds = [draw.choice(words), draw.choice(words), latin, draw.choice(emoji), control]
        parts.append(draw.choice([*kinds, draw.choice(marks), anything]))
    return draw.choice(["", " "]).join(parts)


def test_the_tokenizer_gives_the_same_ids(trained, articles):
    """Of a string what Tokenizer.encode() gives, behind the <EOS> that begins a prompt.

    Theirs does not split sentences: dataset.encode()'s ids are each sentence's, with an <EOS> after it.
    """
    tokenizer, other = load_tokenizer(trained / "bpe_tokenizer.json"), theirs(trained / "huggingface")[1]
    eos = tokenizer.token_to_id("<EOS>")
    draw, words = random.Random(0), " ".join(articles).split()
    strings = [random_string(draw, words) for _ in range(1000)]
    alone = 0
    for string, ids in zip(strings, other(strings).input_ids):
        assert ids == [eos, *tokenizer.encode(string).ids]
        assert other.decode(ids, skip_special_tokens=True) == string
        assert other(string).input_ids == ids
        sentences = other(split_sentences(string), add_special_tokens=False).input_ids if string else []
        assert encode(tokenizer, string) == [i for sentence in sentences for i in (*sentence, eos)]
        prompt, prompt_ids = encode_prompt(tokenizer, string)
        if prompt == string and eos not in prompt_ids[1:]:  # the beginning of one sentence
            assert ids == prompt_ids
            alone += 1
    assert alone > 200
    assert other("Да. <EOS>Нет", split_special_tokens=False).input_ids.count(eos) == 2  # as the card says


def test_the_end_token_and_the_shape_are_the_same(trained):
    model, tokenizer = LLM.load(trained / "parameters.pt2"), load_tokenizer(trained / "bpe_tokenizer.json")
    other, their_tokenizer = theirs(trained / "huggingface")
    eos = tokenizer.token_to_id("<EOS>")
    assert their_tokenizer.eos_token == "<EOS>" and their_tokenizer.eos_token_id == eos
    assert other.config.eos_token_id == other.generation_config.eos_token_id == eos
    assert their_tokenizer.get_vocab() == tokenizer.get_vocab() and their_tokenizer.model_max_length == 256
    assert other.config.num_attention_heads == 4 and other.config.hidden_size == model.d_model
    assert other.config.max_position_embeddings == other.generation_config.max_length == 256
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_the_folder_is_whole_and_its_card_has_the_figures(trained):
    folder = trained / "huggingface"
    assert {path.name for path in folder.iterdir()} == NAMES and not list(trained.glob("*.tmp"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for figure in ("57,344", "1.5 minutes", "3.250", "4.568", "2.346", "2 layers", "width 64", "500 entries"):
        assert figure in card


def test_what_goes_wrong_is_one_line_and_the_old_export_stays(trained, tmp_path):
    def fails(out: Path, message: str, *command) -> None:
        code, _, err = run(*command) if command else call("export.py", "--out_dir", out)
        assert code == 2 and message in err, err
        assert len(err.splitlines()) == 1 and err.startswith("export.py: "), err

    fails(tmp_path, "train a model first")
    fails(tmp_path / "nowhere", "train a model first")
    (tmp_path / "parameters.pt2").write_bytes((trained / "parameters.pt2").read_bytes())
    fails(tmp_path, "bpe_tokenizer.json is missing")
    (tmp_path / "bpe_tokenizer.json").write_bytes((trained / "bpe_tokenizer.json").read_bytes())

    before, there = bytes_of(trained / "huggingface"), sorted(trained.iterdir())
    limited = (  # the weights are larger than the limit
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, '.'); runpy.run_path('export.py', run_name='__main__')"
    )
    fails(trained, "File too large", "-c", limited, "export.py", "--out_dir", trained)
    assert bytes_of(trained / "huggingface") == before and sorted(trained.iterdir()) == there

    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "thesis.txt").write_text("mine")
    (tmp_path / "huggingface" / ".DS_Store").write_text("")  # a file manager's, and in nobody's way
    fails(tmp_path, "holds thesis.txt, which export.py did not write")
    (tmp_path / "huggingface" / ".DS_Store").unlink()
    assert bytes_of(tmp_path / "huggingface") == {"thesis.txt": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="no folder"):
        export.replace_folder(tmp_path / "file", {})


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_between_the_two_renames_brings_the_old_export_back(failing, tmp_path, monkeypatch):
    export.replace_folder(tmp_path / "folder", {"a": b"old"})
    rename, calls = os.rename, []

    def broken(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError):
        export.replace_folder(tmp_path / "folder", {"a": b"new"})
    assert bytes_of(tmp_path / "folder") == {"a": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    monkeypatch.undo()
    export.replace_folder(tmp_path / "folder", {"a": b"new"})
    assert bytes_of(tmp_path / "folder") == {"a": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
