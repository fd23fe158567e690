"""The page's time slider: each place computes what the snapshot of that step computes in Python."""

import base64
import copy
import time

import numpy as np
import pytest
import torch
from pages import browser, model, move_slider, needs_browser, tokenizer, type_text, written  # noqa: F401

from interpretability import page as page_module
from interpretability.page import make_page
from interpretability.snapshots import choose_evenly, last_step_of, pack, packed_size, read_snapshot
from llm import LLM
from support.checkpoint import load_snapshot
from support.cli import UserError

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
STEPS = [0, 3, 9]
IDS = [5, 60, 170, 8, 99, 311, 42, 7, 7, 250, 13, 77, 201, 30, 4, 160]  # 16 tokens


def save_snapshot(model, folder, step):
    """As train.py saves it: a state_dict with its weights in float16."""
    path = folder / f"step-{step:08}.pt2"
    state = model.state_dict()
    halves = {name: value.half() if torch.is_tensor(value) else value for name, value in state.items()}
    torch.save(halves, path)
    return step, path


def at_step(model: LLM, step: int) -> LLM:
    """Another model of the same shape."""
    torch.manual_seed(step + 1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return other


@pytest.fixture(scope="module")
def snapshots(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return [save_snapshot(at_step(model, step), folder, step) for step in STEPS]


@pytest.fixture(scope="module")
def page(browser, model, tokenizer, snapshots, tmp_path_factory):
    folder, text = tmp_path_factory.mktemp("page"), "Волга впадает в Каспийское море"
    path = written(model, tokenizer, folder, text, snapshots)
    browser.get(path.as_uri())
    return browser


@pytest.fixture(autouse=True)
def no_errors(request):
    """Nothing that a test does leaves an error in the console."""
    yield
    if "page" in request.fixturenames:
        assert request.getfixturevalue("page").get_log("browser") == []


def unpacked(model, packed):
    """What unpack_rows() of arithmetic.js makes of pack(), by name."""
    data = base64.b64decode(packed)
    num_rows = sum(len(parameter) for parameter in model.parameters())
    scales, numbers = np.frombuffer(data, "<f4", num_rows), np.frombuffer(data, "i1", offset=4 * num_rows)
    weights = {}
    for name, parameter in model.named_parameters():
        rows, size = len(parameter), parameter.numel()
        weights[name] = scales[:rows, None] * numbers[:size].reshape(rows, -1)
        scales, numbers = scales[rows:], numbers[size:]
    assert len(scales) == len(numbers) == 0
    return weights


def test_packed_weights_are_near_the_weights(model):
    packed = pack(model)
    assert len(packed) == packed_size(model)
    for name, weight in unpacked(model, packed).items():
        rows = dict(model.named_parameters())[name].detach().numpy().reshape(len(weight), -1)
        half_a_unit = np.abs(rows).max(axis=1, keepdims=True) / 254
        assert (np.abs(weight - rows) <= half_a_unit * 1.001).all(), name
        if "norm" in name:
            assert weight == pytest.approx(rows, rel=1e-6)


def test_zero_weights_stay_zero():
    model = LLM(100, 16, 2, 1, 8)  # untrained: each block ends in zeros
    weights = unpacked(model, pack(model))
    assert (weights["blocks.0.mlp.down_proj.weight"] == 0).all()


def test_snapshots_are_chosen_evenly_in_log_steps():
    doubling = [0, *(2**i - 1 for i in range(1, 10))]
    assert choose_evenly(doubling, 1023, 5) == [0, 2, 4, 6, 8]
    assert choose_evenly(doubling, 1023, 99) == list(range(10))
    assert choose_evenly(doubling, 1023, 0) == []
    assert choose_evenly([0, 1, 1000], 1000, 8) == [0, 1]  # the last one is the finished model
    for count in range(1, 10):
        chosen = choose_evenly(doubling, 1023, count)
        assert len(set(chosen)) == count and chosen[0] == 0 and chosen == sorted(chosen)


def test_the_last_step_is_that_of_the_log_or_after_all_snapshots():
    assert last_step_of({"step": [10.0, 20.0]}, [(0, None), (9, None)]) == 20
    assert last_step_of({"step": [10.0]}, [(0, None), (15, None)]) == 16  # the run was ended after step 15
    assert last_step_of({}, [(0, None), (9, None)]) == 10


def test_as_many_snapshots_as_fit(model, tokenizer, snapshots, monkeypatch):
    neurons = {"contexts": np.zeros((3, 96, 1, 1)), "activations": np.zeros((3, 96, 1))}
    measured = {"training": {"log": {"step": [20]}, "samples": []}, "neurons": neurons}
    measured["snapshots"] = {"step": [*STEPS, 20]}
    empty = len(make_page(model, tokenizer, measured, "").encode())
    for count in (0, 1, 2, 3):
        most = empty + count * (packed_size(model) + 100) + 1500
        monkeypatch.setattr(page_module, "MOST_BYTES", most)
        html = make_page(model, tokenizer, measured, "", snapshots)
        assert html.count('class="snapshot"') == count and len(html.encode()) <= most


def test_a_snapshot_of_another_run_is_refused(model, tmp_path):
    for other in (LLM(model.vocab_size, 32, 2, 2, 128), copy.deepcopy(model)):
        other.trained_on = {"tokenizer": "another"}
        _, path = save_snapshot(other, tmp_path, 5)
        with pytest.raises(UserError, match="not of the run"):
            read_snapshot(path, model)


@needs_browser
def test_each_place_computes_what_its_snapshot_computes(page, model, snapshots):
    script = """go_to_place(arguments[0]);
        const cache = model.forward(arguments[1], new Cache(L));
        return arguments[1].map((_, at) => Array.from(model.predict(cache, at)))"""
    assert page.execute_script("return places") == [*STEPS, 20]
    for place, (_, path) in enumerate(snapshots):
        expected = load_snapshot(path)(torch.tensor([IDS]))[0].log_softmax(-1)
        found = torch.tensor(page.execute_script(script, place, IDS)).log_softmax(-1)
        divergence = (expected.exp() * (expected - found)).sum(-1).mean().item()
        assert 0 <= divergence < 0.01, (place, divergence)
    found = torch.tensor(page.execute_script(script, len(STEPS), IDS))
    assert torch.allclose(found, model(torch.tensor([IDS]))[0], rtol=0, atol=1e-3)


@needs_browser
def test_a_move_changes_the_whole_page(page):
    type_text(page, "Волга впадает в")
    seen = []
    for place in range(len(STEPS) + 1):
        move_slider(page, "place", place)
        page.execute_script("draw_slow_sections()")
        ids = ("drawing", "attention", "mlp", "stream", "prediction", "cases")
        seen.append([page.find_element("id", part).get_attribute("textContent") for part in ids])
        seen[-1].append(page.find_element("css selector", "#time .said").text)
    for part in zip(*seen):
        assert len(set(part)) == len(part)


@needs_browser
def test_the_keyboard_moves_the_slider(page):
    page.execute_script("document.getElementById('place').focus()")
    for key, place in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.END, 3), (Keys.ARROW_LEFT, 2)):
        page.switch_to.active_element.send_keys(key)
        assert page.execute_script("return time.place") == place
    steps = page.find_element("id", "place").get_attribute("aria-valuetext")
    assert steps.startswith("step 9") and "loss" in steps


@needs_browser
def test_play_shows_every_place_and_ends(page):
    page.execute_script(
        "go_to_place(3); window.seen = []; "
        "const go = go_to_place; go_to_place = (p) => { seen.push(p); go(p) }"
    )
    page.execute_script("document.getElementById('play').focus()")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.find_element("id", "play").get_attribute("aria-label") == "pause"
    until = time.monotonic() + 60
    while page.execute_script("return time.timer !== null"):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert page.execute_script("return seen") == [0, 1, 2, 3]
    assert page.find_element("id", "play").get_attribute("aria-label") != "pause"


@needs_browser
def test_a_move_by_hand_ends_the_play(page):
    page.find_element("id", "play").click()
    move_slider(page, "place", 1)
    assert page.execute_script("return time.timer === null && time.place === 1")


@needs_browser
def test_heads_stay_off_when_the_slider_moves(page):
    type_text(page, "Волга впадает в")
    page.execute_script("toggle(1, 0)")
    move_slider(page, "place", 1)
    script = """const whole = model.forward(state.ids, new Cache(L));
        return [cache, whole].map((one) => Array.from(model.predict(one, state.at)))"""
    ablated, whole = page.execute_script(script)
    assert max(abs(a - b) for a, b in zip(ablated, whole)) > 1e-2
    page.execute_script("toggle(1, 0)")


@needs_browser
def test_nothing_overflows_and_nothing_is_requested(page):
    view = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    for place in range(len(STEPS) + 1):
        move_slider(page, "place", place)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    messages = [entry["message"] for entry in page.get_log("performance")]
    requests = [message for message in messages if '"Network.requestWillBeSent"' in message]
    assert all('"url":"file://' in request for request in requests)


@needs_browser
def test_identical_snapshots_change_nothing(browser, model, tokenizer, tmp_path):
    same = [save_snapshot(model, tmp_path, step) for step in STEPS]
    browser.get(written(model, tokenizer, tmp_path, "Волга впадает в", same).as_uri())
    script = """go_to_place(arguments[0]); draw_slow_sections();
        const parts = ["drawing", "embedding", "attention", "mlp", "stream", "prediction", "cases"];
        const texts = parts.map((id) => document.getElementById(id).textContent);
        return [Array.from(model.predict(cache, state.at)), texts]"""
    first, *others = [browser.execute_script(script, place) for place in range(len(STEPS))]
    assert all(other == first for other in others)


@needs_browser
def test_without_snapshots_there_is_no_slider(browser, model, tokenizer, tmp_path):
    browser.get(written(model, tokenizer, tmp_path, "Волга").as_uri())
    assert browser.find_element("id", "time").get_attribute("innerHTML") == ""
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
