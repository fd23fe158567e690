"""Pairs worked by hand; patching against tensors replaced by hand, and against a circuit that is known."""

import numpy as np
import pytest
import torch
from circuit_models import CARRIER, STEMS, carried_pairs, carrying_model
from helpers import call
from small_models import HEADS, LAYERS, VOCAB, T, small_model, trace

import interpretability.steering as steering
from corpus.tokenizer import train_tokenizer
from interpretability.case_pairs import Pair, align, changed_preposition, changed_verb, find_pairs
from interpretability.case_pairs import pair_of_texts, targets_of
from interpretability.circuit_report import best_steering, print_contrasts
from interpretability.contributions import contributions, direct_shares
from interpretability.patching import (
    Part, heads_and_mlps, make_batch, patch, patch_stream, patched_scores, ratio, record, roles, scores,
    streams,
)  # fmt: skip
from interpretability.trace import output_columns
from llm import LLM, attention
from support.cli import UserError


@pytest.fixture(scope="module")
def model() -> LLM:
    return small_model()


def random_pairs(count: int = 8) -> list[Pair]:
    """Pairs of random tokens, of 5 to T tokens, that differ in one."""
    generator = np.random.default_rng(0)
    pairs = []
    for length in np.sort(generator.integers(5, T + 1, size=count)):
        clean = generator.integers(VOCAB, size=length).tolist()
        decider = int(generator.integers(1, length - 2))
        corrupt = [*clean[:decider], (clean[decider] + 1) % VOCAB, *clean[decider + 1 :]]
        a, b = generator.choice(VOCAB, size=2, replace=False).tolist()
        pairs.append(Pair(clean, corrupt, a, b, decider))
    return pairs


# Pairs


def test_alignment_by_hand():
    pair = align([0, 5, 1, 7, 8, 3, 9], [0, 5, 2, 7, 8, 4])
    assert pair[:5] == ([0, 5, 1, 7, 8], [0, 5, 2, 7, 8], 3, 4, 2)
    assert roles(pair) == {"deciding word": [2], "between": [3], "last token": [4]}
    two = align([1, 1, 7, 3], [2, 2, 7, 4])  # a deciding word of two tokens
    assert two.clean == [1, 1, 7] and roles(two)["deciding word"] == [0, 1] and roles(two)["between"] == []


@pytest.mark.parametrize(
    "clean, corrupt",
    [
        ([0, 1, 7], [0, 1, 7]),  # nothing differs
        ([0, 1, 7], [0, 2, 7]),  # no ending differs
        ([0, 1, 7, 3], [0, 2, 7]),  # one ending begins the other: there it has no token
        ([0, 1, 3], [0, 2, 4]),  # no shared token between: a matter of token pairs
        ([0, 1, 1, 7, 3], [0, 2, 7, 4]),  # deciding words of one and two tokens
    ],
)
def test_what_does_not_align_is_refused(clean, corrupt):
    with pytest.raises(ValueError):
        align(clean, corrupt)


@pytest.fixture(scope="module")
def tokenizer():
    """Stems and prepositions are its tokens; endings are single letters: it never saw the two together."""
    words = "Он жил шёл стоял смотрел без в к о на стол стен больш молод женщин пела".split()
    words += [first + second for first in "ауеыоя" for second in "ауеыоя"]  # each letter becomes a token
    return train_tokenizer([f" {' '.join(words)} "] * 9, 600)


def found(tokenizer, sentence: str) -> set[tuple]:
    pairs = find_pairs(targets_of([sentence, "ё"]), tokenizer)
    for pair in pairs:
        assert len(pair.clean) == len(pair.corrupt) and pair.clean_token != pair.corrupt_token
        assert pair.clean[pair.decider] != pair.corrupt[pair.decider] and pair.clean[-1] == pair.corrupt[-1]
    return {
        (p.contrast, p.clean_case, p.corrupt_case, *map(tokenizer.decode, (p.clean[1:], p.corrupt[1:])))
        for p in pairs
    }


def test_pairs_of_real_sentences(tokenizer):
    assert found(tokenizer, "Он жил без стола.") == {
        ("без / к", "gent", "datv", "Он жил без стол", "Он жил к стол")
    }
    assert found(tokenizer, "Он шёл к столу.") == {
        ("без / к", "datv", "gent", "Он шёл к стол", "Он шёл без стол"),
        ("в / к", "datv", "loct", "Он шёл к стол", "Он шёл в стол"),
        ("о / к", "datv", "loct", "Он шёл к стол", "Он шёл о стол"),
    }
    contrasts = {each[0] for each in found(tokenizer, "Он жил без большого стола.")}
    assert contrasts == {"без / к, adjective"}  # the noun behind it is decided by two words
    assert {each[:3] for each in found(tokenizer, "Он молодая женщина пела.")} == {
        ("adjective / its noun", "nomn", each[2]) for each in found(tokenizer, "Он молодая женщина пела.")
    }
    assert not found(tokenizer, "Он спит.") and not found(tokenizer, "Он жил для стола.")


@pytest.mark.parametrize(
    "sentence, endings",
    [
        ("Он шёл к дому.", {"без дома", "в доме", "о доме"}),
        ("Он шёл к окну.", {"без окна", "в окне"}),  # it is «об окне»
        ("Он шёл к ежу.", {"без ежа", "в еже", "о еже"}),
        ("Он шёл ко вторнику.", set()),
        ("Он пел о вторнике.", set()),  # it is «ко вторнику»
        ("Он шёл к французу.", {"без француза", "о французе"}),  # it is «во французе»
    ],
)
def test_no_preposition_stands_where_it_has_another_form(sentence, endings):
    for targets in targets_of([sentence]):
        candidates = [each for target in targets for each in changed_preposition(target)]
        assert {f"{text.split()[-1]} {form}" for _, _, text, form, _ in candidates} == endings


def test_pairs_by_the_verb(tokenizer):
    ((contrast, clean_case, corrupt_case, clean, corrupt),) = found(tokenizer, "Он стоял на стене.")
    assert (contrast, clean_case, corrupt_case) == ("на, by the verb", "loct", "accs")
    assert clean == "Он стоял на стен" and corrupt.startswith("Он ") and corrupt.endswith("л на стен")
    assert not found(tokenizer, "Он на стене.")


def texts_with_another_verb(sentence: str) -> list[str]:
    ((target,),) = targets_of([sentence])
    return [text for _, _, text, _, _ in changed_verb(target)]


def test_another_verb_takes_the_place_of_a_whole_word():
    assert "Камень лежал на " in texts_with_another_verb("Камень упал на землю.")
    assert texts_with_another_verb("Упал на землю.") == []  # and not «Улежал»


def test_another_verb_is_in_the_same_mood():
    texts = texts_with_another_verb("Ты сядь на землю.")
    assert "Ты лежи на " in texts and "Ты останься на " in texts and "Ты останемся на " not in texts


def test_a_pair_of_ones_own(tokenizer):
    pair = pair_of_texts(tokenizer, "Он жил без стола", "Он жил к столу")
    assert tokenizer.decode(pair.clean) == "Он жил без стол" and tokenizer.decode([pair.corrupt_token]) == "у"
    with pytest.raises(UserError, match="no shared token"):
        pair_of_texts(tokenizer, "Он жил", "Мы шли")
    with pytest.raises(UserError, match="endings must differ"):
        pair_of_texts(tokenizer, "Он жил без стола", "Он жил к стола")


# Patching


def test_nothing_patched_is_0_and_the_whole_stream_is_1(model):
    pairs = random_pairs()
    groups = {"nothing": []} | {str(layer): [part] for layer, part in enumerate(streams(model))}
    shares = {name: each["share"] for name, each in patch(model, pairs, groups, "").recovered().items()}
    assert shares.pop("nothing") == pytest.approx(0, abs=1e-5)
    assert list(shares.values()) == pytest.approx([1] * (LAYERS + 1), abs=1e-5)
    everywhere = patch_stream(model, pairs, lambda pair: {"all": range(len(pair.clean))}, "").recovered()
    assert [each["share"] for each in everywhere.values()] == pytest.approx([1] * (LAYERS + 1), abs=1e-5)


def test_where_the_stream_can_hold_the_difference(model):
    places = lambda pair: {"before": range(pair.decider)} | roles(pair)  # noqa: E731
    shares = patch_stream(model, random_pairs(), places, "").recovered()
    for layer in range(LAYERS + 1):
        assert shares[f"{layer} before"]["share"] == pytest.approx(0, abs=1e-5)  # the same in both sentences
    assert shares["0 deciding word"]["share"] == pytest.approx(1, abs=1e-5)
    assert shares["0 last token"]["share"] == pytest.approx(0, abs=1e-5)
    assert shares[f"{LAYERS} last token"]["share"] == pytest.approx(1, abs=1e-5)


def run_by_hand(model: LLM, pair: Pair, part: Part, positions: list[int]) -> torch.Tensor:
    """The logits (T, V) of the corrupt sentence with the output of a part replaced, as a plain loop."""
    clean = trace(model, torch.tensor([pair.clean]))
    x = model.embedding(torch.tensor([pair.corrupt]))
    cos, sin = model.rotary(0, x.shape[1])
    if part == Part("stream", 0):
        x[0, positions] = clean.streams[0, 0, positions]
    for i, block in enumerate(model.blocks):
        q, k, v = block.attention.project(block.attention_norm(x), cos, sin)
        heads = attention(q, k, v)[0] @ output_columns(block.attention)
        if part.kind == "head" and part.layer == i:
            heads[0, part.head, positions] = clean.layers[i].head_outputs[0, part.head, positions]
        x = x + heads.sum(1)
        mlp = block.mlp(block.mlp_norm(x))
        if part == Part("mlp", i):
            mlp[0, positions] = clean.layers[i].mlp_output[0, positions]
        x = x + mlp
        if part == Part("stream", i + 1):
            x[0, positions] = clean.streams[i + 1, 0, positions]
    return model.logits(x)[0]


@torch.no_grad()
def test_patches_are_a_forward_pass_with_the_tensor_replaced_by_hand(model):
    pairs = random_pairs()
    batch = make_batch(pairs)  # of different lengths: padding must change nothing
    parts = heads_and_mlps(model) + streams(model)
    assert len(parts) == LAYERS * (HEADS + 1) + LAYERS + 1
    clean = record(model, batch.clean_ids, parts)
    for part in parts:
        for some in (False, True):
            positions = [range(len(pair.clean)) for pair in pairs]
            where = torch.zeros_like(batch.clean_ids, dtype=torch.bool)
            if some:
                positions = [range(pair.decider, len(pair.clean), 2) for pair in pairs]
            for row, each in enumerate(positions):
                where[row, list(each)] = True
            got = patched_scores(model, batch, [part], clean, where if some else None)
            for row, pair in enumerate(pairs):
                logits = run_by_hand(model, pair, part, list(positions[row]))[-1]
                expected = logits[pair.clean_token] - logits[pair.corrupt_token]
                assert got[row].item() == pytest.approx(expected.item(), abs=1e-5), (part, row)


def test_hooks_are_gone_afterwards(model):
    pairs = random_pairs()
    before = model(make_batch(pairs).clean_ids)
    patch(model, pairs, {"all": heads_and_mlps(model)}, "")
    assert torch.equal(model(make_batch(pairs).clean_ids), before)


# Direct contributions


def test_contributions_sum_to_the_score(model):
    batch = make_batch(random_pairs())
    for ids in (batch.clean_ids, batch.corrupt_ids):
        found, looks = contributions(model, ids, batch)
        assert set(found) == {"embedding", *map(str, heads_and_mlps(model))}
        assert torch.allclose(sum(found.values()), scores(model, ids, batch), rtol=0, atol=1e-4)
        assert looks.shape == (LAYERS, HEADS, len(batch.pairs))
    pair = batch.pairs[0]
    weights = trace(model, batch.corrupt_ids).layers[2].weights  # (B, H, T, T)
    assert looks[2, 1, 0].item() == pytest.approx(weights[0, 1, len(pair.clean) - 1, pair.decider].item())
    shares, _ = direct_shares(model, random_pairs())
    assert sum(each["share"] for each in shares.values()) == pytest.approx(1, abs=1e-4)


# A circuit that is known


def test_the_head_that_carries_the_feature_is_found():
    model, pairs = carrying_model(), sorted(carried_pairs(), key=lambda pair: len(pair.clean))
    patched = patch(model, pairs, {str(part): [part] for part in heads_and_mlps(model)}, "")
    assert (patched.clean > 0).all() and (patched.corrupt < 0).all()
    shares, looks = direct_shares(model, pairs)
    for found in (patched.recovered(), shares):
        assert found[CARRIER] == pytest.approx({"share": 1, "low": 1, "high": 1})
        others = [each["share"] for name, each in found.items() if name != CARRIER]
        assert others == pytest.approx([0] * len(others), abs=1e-9)
    assert looks[CARRIER] == pytest.approx(np.mean([1 / len(pair.clean) for pair in pairs]))

    stream = {name: each["share"] for name, each in patch_stream(model, pairs, roles, "").recovered().items()}
    for layer in range(4):
        carried = layer >= 2
        assert stream[f"{layer} deciding word"] == pytest.approx(0 if carried else 1, abs=1e-9)
        assert stream[f"{layer} last token"] == pytest.approx(1 if carried else 0, abs=1e-9)


def test_one_chosen_contrast():
    model, pairs = carrying_model(), carried_pairs()[:4]
    patched = patch(model, pairs, {"nothing": []}, "")
    patched.patched["half"] = (patched.clean + patched.corrupt) / 2
    patched.patched["half"][2:] = patched.clean[2:]
    assert patched.recovered(np.array([True, True, False, False]))["half"]["share"] == pytest.approx(0.5)
    assert patched.recovered(np.array([False, False, True, True]))["half"]["share"] == pytest.approx(1)


def test_steering_turns_the_endings(monkeypatch):
    model, pairs = carrying_model(), carried_pairs()
    first, second = steering.halves(steering.both_ways(pairs))
    assert len(first) + len(second) == 2 * STEMS
    assert not {pair.lemma for pair in first} & {pair.lemma for pair in second}

    windows = torch.arange(5, 41).view(3, 12)
    steered = steering.steer(model, pairs, windows)
    assert list(steered) == [str(n + 1) for n in range(model.num_layers)]
    rows = steered["2"]
    # Strength 1 would move every score to that of the other case, if all sentences were of the same length
    assert all(row["steered"]["share"] == 1 for row in rows if row["strength"] > 1)
    with monkeypatch.context() as patches:
        patches.setattr(steering, "LEAST_PAIRS", 1000)
        assert steering.steer(model, pairs, windows) == {}

    vector = steering.mean_difference(model, pairs, streams(model)[2])
    assert vector[1] < 0 and torch.allclose(vector[2:], torch.zeros(10).double())
    assert steering.random_vector(vector, 0).norm().item() == pytest.approx(vector.norm().item())


def test_a_ratio_and_its_interval():
    parts = np.random.default_rng(1).normal(3, 1, size=400)
    found = ratio(parts, np.full(400, 10.0))
    assert found["share"] == pytest.approx(parts.sum() / 4000)
    half_width = 1.96 * parts.std() / 10 / 400**0.5  # of the normal distribution
    assert found["share"] - found["low"] == pytest.approx(half_width, rel=0.15)
    assert found["high"] - found["share"] == pytest.approx(half_width, rel=0.15)
    found = ratio(np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    assert found["share"] == 0.25  # of sums, not the mean of 1 and 0


# The experiment


def steered_row(strength: float, turned: float, cost: float) -> dict:
    return {"strength": strength, "steered": {"share": turned}, "steered_cost": cost}


def test_the_layer_that_is_drawn_is_one_where_steering_costs_little():
    dear, cheap = [steered_row(0.5, 0.9, 0.3)], [steered_row(0.5, 0.2, 0.05), steered_row(1, 0.95, 0.4)]
    assert best_steering({"1": dear, "2": cheap}) == ("2", cheap)
    assert best_steering({"1": dear, "3": [steered_row(0.5, 0.1, 0.2)]})[0] == "1"  # all cost too much


def test_a_contrast_of_one_pair_has_no_interval(capsys):
    def contrast(count: int) -> dict:
        ends = {"share": 3.2, "low": 3.2 if count == 1 else 1.5, "high": 3.2 if count == 1 else 4.5}
        patching = {"head 1.1": {"share": 0.5, "low": 0.4, "high": 0.6}}
        return {"both_right": {"count": count, "accuracy": 1.0}, "difference": ends, "patching": patching}

    by_contrast = {"one": contrast(1), "many": contrast(9)}
    results = {"best_heads": ["head 1.1"], "looks": {"head 1.1": 1.0}, "pairs": 10}
    print_contrasts(results | {"by_contrast": by_contrast})
    one, many = capsys.readouterr().out.splitlines()[-2:]
    assert one.split() == ["one", "1", "100.0%", "3.20", "–", "–"]
    assert "3.20 (1.50 to 4.50)" in many and "50.0% (40.0% to 60.0%)" in many


def test_a_pair_of_ones_own_from_the_command_line(trained):
    texts = ["--clean", "Он стоял без стола", "--corrupt", "Он стоял для столу"]
    done = call("experiments.case_circuit", "--out_dir", trained, *texts)
    assert done.code == 0 and "best three heads" in done.out, done.err
    assert (trained / "case_circuit_pair.json").exists()
    assert (trained / "case_circuit_pair.png").read_bytes().startswith(b"\x89PNG")
    assert not (trained / "case_circuit.json").exists()  # of the experiment, which takes minutes
    alone = call("experiments.case_circuit", "--out_dir", trained, "--clean", "Он стоял без стола")
    assert alone.code == 2 and "give both or none" in alone.err
    unlike = call("experiments.case_circuit", "--out_dir", trained, "--clean", "Он", "--corrupt", "Он")
    assert unlike.code == 2 and "no token differs" in unlike.err and unlike.err.count("\n") == 1
