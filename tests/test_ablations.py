"""experiments/ablations.py: every ablation leaves out only what it says; the experiment repeats nothing."""

import itertools
import json
import math
import subprocess
from argparse import Namespace

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ARTICLES, call, random_weights, write_articles, write_log

from corpus.token_files import Corpus
from corpus.tokenizer import encode, train_tokenizer
from evaluation import samples
from experiments import ablated_models, ablations, harness
from experiments.ablated_models import ABLATIONS, WHOLE, write_model
from experiments.ablations import FORMS, cell, draw, measure, print_models
from experiments.harness import compare, run_key
from llm import LLM, RMSNorm
from support.checkpoint import FOLDER_IN_USE, save_model
from support.cli import UserError, make_parser, parse_args
from support.loss import TrainingLoss
from support.model_class import model_class
from support.numpy_decoder import fastest_step

SIZES = {"vocab_size": 40, "d_model": 16, "num_heads": 2, "num_layers": 2, "max_seq_len": 12}
TINY = "--d_model 16 --num_heads 2 --num_layers 1 --max_seq_len 16 --vocab_size 300 --batch_size 4".split()
IDS = torch.tensor([[3, 14, 15, 9, 26, 5]])


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(name, **sizes): the untrained model of an ablation, of the class that train.py would train."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, **sizes) -> LLM:
        recipe = write_model(ABLATIONS[name], folder)
        Model = model_class(Namespace(**recipe))
        torch.manual_seed(0)
        sizes = SIZES | sizes | {"num_heads": recipe.get("num_heads", SIZES["num_heads"])}
        return Model(**sizes).double().eval()

    return make


@pytest.fixture
def trained_here(monkeypatch) -> list[str]:
    """Lets the harness train in this process, which saves the imports. Lists the commands."""
    commands = []

    def train(command, **_) -> Namespace:
        commands.append(" ".join(command))
        done = call("train.py", *command[2:])
        return Namespace(returncode=done.code, stdout=done.out, stderr=done.err)

    monkeypatch.setattr(subprocess, "run", train)
    return commands


def parsed(monkeypatch, *flags) -> Namespace:
    monkeypatch.setattr("sys.argv", ["ablations", *map(str, flags)])
    return parse_args(make_parser(""))


def with_weights_of(model: LLM) -> LLM:
    """The whole model with an altered one's weights. Parts missing there add nothing to the stream."""
    whole = LLM(**model.architecture()).double().eval()
    weights = {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}
    whole.load_state_dict(weights, strict=False)
    return whole


# What each ablation leaves out


@pytest.mark.parametrize("name", ABLATIONS)
def test_training_loss_and_gradients_are_those_of_the_logits(make, name):
    model = random_weights(make(name))
    ids = torch.randint(40, (3, 9))
    input_ids, target_ids = ids[:, :-1], ids[:, 1:]
    parameters = list(model.parameters())
    expected = F.cross_entropy(model(input_ids).flatten(0, 1), target_ids.flatten())
    gradients = torch.autograd.grad(expected, parameters)  # fails if a parameter is left that nothing uses
    loss = TrainingLoss(model, torch.float32)(input_ids, target_ids)
    assert torch.allclose(loss, expected, rtol=1e-5)
    for ours, gradient in zip(torch.autograd.grad(loss, parameters), gradients):
        assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-6)
    in_bf16 = TrainingLoss(model.float(), torch.bfloat16)(input_ids, target_ids)
    assert torch.allclose(in_bf16.double(), expected, rtol=0.05)


@pytest.mark.parametrize("name", ABLATIONS)
def test_what_is_left_begins_as_in_the_whole_model(make, name):
    whole, model = make(WHOLE).state_dict(), make(name).state_dict()
    for key, value in model.items():
        new = key == "input_embedding.weight" or key.endswith(("o_proj.weight", "down_proj.weight"))
        if torch.is_tensor(value) and not new and not (name == "one head" and "_norm" in key):
            assert torch.equal(value, whole[key]), key


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_generated_text_is_that_of_the_altered_model(make, name):
    model = random_weights(make(name)).float()
    assert (fastest_step(model, 1) is None) == (type(model) is not LLM) == (name not in (WHOLE, "one head"))
    tokens = torch.stack(list(itertools.islice(model.generate(IDS, temperature=0), 5)), dim=1)  # with a cache
    ids = torch.cat((IDS, tokens), dim=1)
    assert torch.equal(model(ids)[0, 5:-1].argmax(dim=-1), tokens[0])


def test_without_attention_no_token_reaches_a_later_position(make):
    changed = IDS.clone()
    changed[0, 1] = 7
    model = random_weights(make("no attention"))
    assert torch.equal(model(IDS)[0, 2:], model(changed)[0, 2:])
    assert not torch.equal(model(IDS)[0, 1], model(changed)[0, 1])
    whole = random_weights(make(WHOLE))
    assert not torch.isclose(whole(IDS)[0, -1], whole(changed)[0, -1]).any()
    assert torch.allclose(model(IDS), with_weights_of(model)(IDS))  # o_proj of a new model is 0
    assert not any("attention" in key for key, _ in model.named_parameters())


def test_without_mlp_the_attention_is_left(make):
    model = random_weights(make("no MLP"))
    assert torch.allclose(model(IDS), with_weights_of(model)(IDS))  # down_proj of a new model is 0
    assert not any("mlp" in key for key, _ in model.named_parameters())


def test_without_residual_path_a_part_replaces_the_stream(make):
    model, whole = make("no residual path"), make(WHOLE)
    spread = model.residual(IDS).std(dim=1)  # over the positions
    assert (spread > 1e-3).all()  # untrained, it tells them apart
    weights = {key: value for key, value in model.state_dict().items() if torch.is_tensor(value)}
    whole.load_state_dict(weights, strict=False)
    for each in (model, whole):
        torch.nn.init.zeros_(each.blocks[-1].mlp.down_proj.weight)
    assert not model.residual(IDS).any() and whole.residual(IDS).any()
    block, x = model.blocks[0], torch.randn(1, 6, 16, dtype=torch.float64)
    cos, sin = model.rotary(0, 6)
    y = block.attention(block.attention_norm(x), cos, sin)
    assert torch.equal(block(x, cos, sin), block.mlp(block.mlp_norm(y)))


def test_without_norm_the_output_grows_with_the_input(make):
    for name, factor in (("no norm (but QK-norm)", 9), (WHOLE, 3)):  # 3 by the output layer, 3 by the stream
        model = make(name)  # its blocks add nothing yet
        logits = model(IDS)
        model.embedding.weight.data *= 3
        assert torch.allclose(model(IDS), factor * logits, rtol=1e-3)
    norms = [key for key, part in make("no norm (but QK-norm)").named_modules() if isinstance(part, RMSNorm)]
    assert len(norms) == 4 and all(key.endswith(("q_norm", "k_norm")) for key in norms)


def test_without_qk_norm_longer_queries_look_more_sharply(make):
    for name, same in (("no QK-norm", False), (WHOLE, True)):
        model = random_weights(make(name))
        logits = model(IDS)
        for block in model.blocks:
            block.attention.qkv_proj.weight.data[:16] *= 3  # the queries
        assert torch.allclose(model(IDS), logits, rtol=1e-3) == same
    norms = [key for key, part in make("no QK-norm").named_modules() if isinstance(part, RMSNorm)]
    assert len(norms) == 5 and not any(key.endswith(("q_norm", "k_norm")) for key in norms)


def test_without_rotary_positions_one_layer_knows_no_order(make):
    mixed = IDS[:, [2, 0, 4, 1, 3, 5]]
    model, whole = (random_weights(make(name, num_layers=1)) for name in ("no rotary positions", WHOLE))
    assert torch.allclose(model(IDS)[0, -1], model(mixed)[0, -1])
    assert not torch.allclose(whole(IDS)[0, -1], whole(mixed)[0, -1])


def test_one_head_is_as_wide_as_the_model(make):
    model = make("one head")
    assert model.num_heads == 1 and model.blocks[0].attention.q_norm.weight.shape == (16,)


def test_an_untied_output_has_a_matrix_of_its_own(make):
    model = random_weights(make("untied output"))
    logits = model(IDS)
    model.input_embedding.weight.data[30] += 1  # a token that is not read
    assert torch.equal(model(IDS), logits)
    model.embedding.weight.data[30] += 1
    assert (model(IDS) != logits).nonzero()[:, -1].unique().tolist() == [30]
    model.input_embedding.weight.data[3] += 1  # the first that is read
    assert not torch.isclose(model(IDS)[..., 31], logits[..., 31]).any()

    TrainingLoss(model, torch.float32)(IDS, IDS).backward()
    came_in = model.input_embedding.weight.grad.any(dim=1)
    assert came_in.nonzero().flatten().tolist() == sorted(IDS[0].tolist())
    assert model.embedding.weight.grad.any(dim=1).all()
    whole, untied = (sum(p.numel() for p in make(name).parameters()) for name in (WHOLE, "untied output"))
    assert untied == whole + 40 * 16


# The experiment


def test_an_ablation_is_trained_anew_when_its_own_code_changes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    recipes = {name: write_model(change, tmp_path) for name, change in ABLATIONS.items()}
    keys = {name: run_key(recipe, "text") for name, recipe in recipes.items()}
    assert len(set(keys.values())) == len(ABLATIONS)
    assert keys["no MLP"] == run_key(write_model(ABLATIONS["no MLP"], tmp_path / "elsewhere"), "text")

    def other_code(part) -> str:
        return "# another\n" * (part is ablated_models.no_mlp) + part.__name__

    monkeypatch.setattr(ablated_models.inspect, "getsource", lambda part: part.__name__)
    before = {name: run_key(write_model(change, tmp_path), "text") for name, change in ABLATIONS.items()}
    monkeypatch.setattr(ablated_models.inspect, "getsource", other_code)
    after = {name: run_key(write_model(change, tmp_path), "text") for name, change in ABLATIONS.items()}
    assert [name for name in ABLATIONS if before[name] != after[name]] == ["no MLP"]


def test_the_experiment_ends_after_a_crash_and_repeats_nothing(tmp_path, monkeypatch, trained_here):
    write_articles(tmp_path / "text.jsonl", ARTICLES[:10])
    pairs = "source_sentence,target_sentence,phenomenon\nКот спит.,Кот спят.,число\n"
    (tmp_path / "pairs.csv").write_text(pairs, encoding="utf-8")
    monkeypatch.setattr(samples, "NUM_SAMPLES", 4)
    monkeypatch.setattr(ablations, "RATES", (0.5, 1))
    flags = [*TINY, "--dataset", tmp_path / "text.jsonl", "--out_dir", tmp_path, "--tokens", 640]
    flags += ["--seeds", 2, "--pairs", tmp_path / "pairs.csv", "--precision", "float32"]
    with monkeypatch.context() as patched:
        patched.setattr(ablations, "ABLATIONS", {WHOLE: {}, "no MLP": ABLATIONS["no MLP"]})
        train, runs = subprocess.run, []

        def crash_in_the_fourth(command, **how):
            runs.append(command)
            if len(runs) == 4:
                raise KeyboardInterrupt
            return train(command, **how)

        patched.setattr(subprocess, "run", crash_in_the_fourth)
        assert call("experiments.ablations", *flags).code == 130
    assert len(trained_here) == 3
    done = call("experiments.ablations", *flags)
    assert done.code == 0, done.err
    assert len(trained_here) == len(set(trained_here)) == len(ABLATIONS) * (2 + 1)  # two rates, a second seed

    files = (tmp_path / "ablations").rglob("*")
    times = {path: path.stat().st_mtime_ns for path in files if path.suffix != ".py"}
    again = call("experiments.ablations", *flags)
    assert again.out.splitlines()[-len(ABLATIONS) :] == done.out.splitlines()[-len(ABLATIONS) :]
    assert len(trained_here) == len(ABLATIONS) * 3
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.is_file())

    result = json.loads((tmp_path / "ablations.json").read_text(encoding="utf-8"))
    figures = result["figures"]
    assert list(figures) == list(ABLATIONS)
    for name, figure in figures.items():
        losses = result["loss_by_rate"][name].values()
        assert len(losses) == 2 and figure["nats"][0] == min(losses) != figure["nats"][1]
        assert all(0 <= share <= 1 for share in figure["real words"])
        assert set(figure["minimal pairs"]) <= {0, 1}
        assert figure["difference"] == [a - b for a, b in zip(figure["nats"], figures[WHOLE]["nats"])]
    sizes = {name: figure["parameters"][0] for name, figure in figures.items()}
    assert sizes["no MLP"] < sizes[WHOLE] < sizes["untied output"]
    row = next(line for line in done.out.splitlines() if line.startswith(f"  {WHOLE}"))
    assert "*" in row and row.count("±") == len(FORMS) - 1
    assert matplotlib.image.imread(tmp_path / "ablations.png").shape == (600, 1000, 4)


def test_the_table_tells_what_shows_nothing(tmp_path, capsys):
    losses = {WHOLE: {0.1: 2.0, 0.2: 1.0, 0.4: 3.0}, "worse": {0.1: 2.0, 0.2: 1.9, 0.4: 1.8}}
    losses["wild"] = {0.1: math.inf, 0.2: math.inf}
    figures = {WHOLE: {"parameters": [10, 10], "nats": [1.0, 1.4], "difference": [0.0, 0.0]}, "wild": {}}
    figures["worse"] = {"parameters": [8, 8], "nats": [1.8, 2.2], "difference": [0.8, 0.7]}
    print_models("Title", losses, figures)
    whole, worse, wild = (line.split() for line in capsys.readouterr().out.splitlines()[3:6])
    assert whole[3:] == ["10", "0.2", "1.200", "±", "2.541"]  # 12.706 * 0.2
    assert worse == ["worse", "8", "0.4*", "2.000", "±", "2.541", "+0.750", "±", "0.635"]
    assert wild == ["wild", "0.1*", "diverged", "diverged"]
    assert cell("difference", [0.1, -0.2]).endswith("contains 0") and cell("difference", [0.1]) == "+0.100"
    draw("Title", figures, tmp_path / "picture.png")
    assert matplotlib.image.imread(tmp_path / "picture.png").shape == (600, 1000, 4)


def test_figures_are_those_of_the_seed_and_of_what_the_text_has(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(ARTICLES[:3], 300)
    corpora = []
    for text in ("Да. ", "Он вышел из дома без шапки. "):
        corpora.append(Corpus(tokenizer, np.array([]), np.array(encode(tokenizer, text)), 1.0, ""))
    save_model(LLM(300, 16, 2, 1, 32), corpora[0], tmp_path, finished=True)
    write_log(tmp_path, val_loss=[3.5], bits_per_char=[1.5])
    monkeypatch.setattr(
        ablations, "evaluate_samples", lambda scorer, held_out, words, seed: {"0.5": {"known": seed / 10}}
    )
    without, with_cases = (
        measure(tmp_path, {}, corpus, [], Namespace(precision="float32", seed=seed))
        for seed, corpus in enumerate(corpora, 1)
    )
    assert without["nats"] == 3.5 and without["real words"] == 0.1 and with_cases["real words"] == 0.2
    assert "case endings" not in without and 0 <= with_cases["case endings"] <= 1


def test_a_run_that_diverges_is_infinitely_bad_and_not_repeated(tmp_path, monkeypatch, trained_here):
    text = write_articles(tmp_path / "text.jsonl", ARTICLES[:10])
    args = parsed(monkeypatch, "--dataset", text, *TINY, "--snapshots", 0)
    recipes = {"learns": {}, "diverges": {"learning_rate": 1e38}}
    with pytest.raises(UserError, match="a run failed: .*loss at step"):
        compare(recipes, 1, 640, args, tmp_path / "runs")
    for _ in range(2):
        outcomes = compare(recipes, 1, 640, args, tmp_path / "runs", may_diverge=True)
        assert math.isfinite(outcomes["learns"].mean) and outcomes["diverges"].losses == [math.inf]
    assert len(trained_here) == 2


def test_a_run_of_another_process_is_left_to_it(tmp_path, monkeypatch, trained_here):
    text = write_articles(tmp_path / "text.jsonl", ARTICLES[:10])
    args = parsed(monkeypatch, "--dataset", text, *TINY, "--snapshots", 0)
    lock_folder, tried = harness.lock_folder, []

    def lock_of_two(folder):
        tried.append(folder)
        if len(tried) == 1:  # the other process is just training the first one
            raise UserError(f"{FOLDER_IN_USE} {folder}")
        return lock_folder(folder)

    monkeypatch.setattr(harness, "lock_folder", lock_of_two)
    monkeypatch.setattr(harness.time, "sleep", lambda seconds: None)
    recipes = {"first": {}, "second": {"learning_rate": 1e-9}}
    outcomes = compare(recipes, 1, 640, args, tmp_path / "runs")
    first, second = outcomes["first"].folders[0], outcomes["second"].folders[0]
    assert tried == [first, second, first]
    assert len(trained_here) == 2 and outcomes["first"].mean < outcomes["second"].mean
