"""The page in a real browser: it loads from disk without network, and computes what Python computes."""

import random

import pytest
import torch
from pages import browser, model, tokenizer  # noqa: F401
from pages import move_slider, needs_browser, type_text, wait_for, written
from small_models import trace

import llm
from corpus.sources import BUNDLED_FILE
from corpus.tokenizer import EOS, encode, encode_prompt
from interpretability.page import PARTS, join_parts

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
pytestmark = needs_browser
HOSTILE = "<script>alert(1)</script> </script> \"'`@WEIGHTS@ 🙂👍🏽 שלום \u202e&amp;<b>"


@pytest.fixture(scope="module")
def page(browser, model, tokenizer, tmp_path_factory):
    path = written(model, tokenizer, tmp_path_factory.mktemp("page"), "Волга впадает в Каспийское море")
    browser.get(path.as_uri())
    return browser


def test_every_part_is_in_the_page_once():
    html = join_parts()
    for path in PARTS.iterdir():
        assert f"@{path.name}@" not in html
        if path.suffix in (".js", ".css"):
            assert html.count(path.read_text(encoding="utf-8")) == 1, path.name


def test_it_loads_from_disk_without_an_error_or_a_request(page):
    assert page.get_log("browser") == []
    messages = [entry["message"] for entry in page.get_log("performance")]
    requests = [message for message in messages if '"Network.requestWillBeSent"' in message]
    assert requests and all('"url":"file://' in request for request in requests)
    assert len(page.find_elements("css selector", "section")) == 10


def test_token_ids_are_those_of_python(page, tokenizer):
    generator = random.Random(0)
    words = BUNDLED_FILE.read_text(encoding="utf-8").split()[:3000]
    texts = ["", " ", "А. С. Пушкин родился в 1799 г. в Москве. Там", HOSTILE]
    texts.append("Да… Нет! «Что?» — спросил.\n\nЭто т. е. вот.")
    texts.append("чу\u00adжои\u0306 дом\u200b. Е\u0308лка.\ufeff")
    for _ in range(200):
        texts.append(" ".join(generator.choices(words, k=generator.randrange(1, 12))))
        alphabet = "абвгд ёЖЗ.!?…«»—- \n\t\r12\0\u00a0\u2028🙂👍🏽שלם"
        alphabet += "\u202eéÅﬁ<>&\"'e\u0301и\u0306\u00ad\u200b\ufeff"
        texts.append("".join(generator.choices(alphabet, k=generator.randrange(30))))
    script = "return arguments[0].map((text) => tokenizer.encode_prompt(text).map(({ id }) => id))"
    found = page.execute_script(script, texts)
    for text, ids in zip(texts, found):
        assert ids == encode_prompt(tokenizer, text)[1], repr(text)


def test_eos_ends_a_prompt_only_if_the_next_word_begins_a_sentence(page, tokenizer):
    script = "return tokenizer.encode_prompt(...arguments).at(-1).id === tokenizer.eos"
    assert page.execute_script(script, "Он пришёл.") and page.execute_script(script, "Он пришёл.", "Потом")
    assert not page.execute_script(script, "Он пришёл.", "потом")


def test_activations_are_those_of_python(page, model):
    """With all heads and with one ablated: logits, attention weights, logit lens, and what each part adds."""
    ids = torch.randint(model.vocab_size, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    script = """const [ids, ablated] = arguments;
        const cache = model.forward(ids, new Cache(L), ablated);
        const head_output = (layer, n, h) => model.head_output(model.blocks[n], layer, h, 7);
        const heads = (layer, n) => Array.from({ length: H }, (_, h) => head_output(layer, n, h));
        const stream = [cache.embedding[7], ...cache.layers.map((layer) => layer.residual[7])];
        return {
            logits: ids.map((_, at) => Array.from(model.predict(cache, at))),
            weights: cache.layers.map((layer) => layer.weights.map((head) => head.map((x) => Array.from(x)))),
            lens: stream.map((x) => Array.from(model.logits(x))),
            head_outputs: cache.layers.map((layer, n) => heads(layer, n).map((y) => Array.from(y))),
            attention_output: cache.layers.map((layer) => Array.from(layer.attention[7])),
            activations: cache.layers.map((layer) => Array.from(layer.activations[7])),
            mlp_output: cache.layers.map((layer) => Array.from(layer.mlp[7])),
        }"""
    for heads, ablated in (((), []), ({(1, 0)}, [[False, False], [True, False], [False, False]])):
        found = page.execute_script(script, ids, ablated)
        expected = trace(model, torch.tensor([ids]), heads)
        assert torch.allclose(torch.tensor(found["logits"]), expected.logits[0], rtol=0, atol=1e-3)
        assert torch.allclose(torch.tensor(found["lens"]), expected.lens[:, 0, 7], rtol=0, atol=1e-3)
        assert found["lens"][-1] == found["logits"][7]
        for n, layer in enumerate(expected.layers):
            for at, row in enumerate(found["weights"][n]):
                for head in range(model.num_heads):
                    assert sum(row[head]) == pytest.approx(1, abs=1e-5)
                    assert row[head] == pytest.approx(layer.weights[0, head, at, : at + 1].tolist(), abs=1e-4)
            layer = layer._asdict() | {"attention_output": layer.head_outputs.sum(1)}
            for name in ("head_outputs", "attention_output", "activations", "mlp_output"):
                there = layer[name][0, ..., 7, :]
                assert torch.allclose(torch.tensor(found[name][n]), there, rtol=0, atol=1e-3), (n, name)


def test_a_cache_changes_nothing(page, model):
    script = """const cache = new Cache(L);
        for (const ids of [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 9, 9]]) model.forward(ids, cache);
        return Array.from(model.predict(cache, 3))"""
    expected = model(torch.tensor([[1, 2, 9, 9]]))[0, -1]
    assert torch.allclose(torch.tensor(page.execute_script(script)), expected, rtol=0, atol=1e-3)


def test_typing_changes_tokens_and_prediction(page):
    seen = []
    for text in ("Волга", "Волга впадает"):
        type_text(page, text)
        seen.append([page.find_element("id", part).text for part in ("tokens", "prediction", "stream")])
    assert all(a != b for a, b in zip(*seen))


def test_sliders_give_the_softmax_that_python_gives(page, model, tokenizer):
    type_text(page, "Волга впадает в")
    ids = encode_prompt(tokenizer, "Волга впадает в")[1]
    logits = model(torch.tensor([ids]))[0, -1]
    move_slider(page, "temperature", 0.5)
    expected = (logits / 0.5).softmax(-1).sort(descending=True)
    found = page.execute_script("return prediction()")
    assert [row["p"] for row in found] == pytest.approx(expected.values.tolist(), abs=1e-4)
    shown = page.find_element("css selector", "#prediction tr").text
    assert f"{100 * expected.values[0]:.1f}%" in shown
    move_slider(page, "top_k", 3)
    top = page.execute_script("return prediction()")
    assert [row["id"] for row in top] == logits.topk(3).indices.tolist()
    assert sum(row["p"] for row in top) == pytest.approx(1)
    page.execute_script("state.top_k = 0; state.temperature = 1; draw()")


def test_a_head_switched_off_changes_the_prediction(page, model, tokenizer):
    type_text(page, "Волга впадает в")
    assert page.find_element("id", "switch").get_attribute("aria-pressed") is None  # its name says its action
    page.find_element("id", "switch").click()
    ids = torch.tensor(encode_prompt(tokenizer, "Волга впадает в")[1])
    expected = trace(model, ids[None], {(0, 0)}).logits[0, -1]
    found = page.execute_script("return Array.from(model.predict(cache, state.at))")
    assert torch.allclose(torch.tensor(found), expected, rtol=0, atol=1e-3)
    page.find_element("id", "switch").click()


def test_a_token_that_is_hidden_is_not_looked_at(page, model, monkeypatch):
    """Against the attention of llm.py with one column of its scores taken away below the diagonal."""
    ids, hidden = [5, 6, 7, 8, 9, 10], 2

    def attention(q, k, v):
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + torch.full((6, 6), float("-inf")).triu(1)
        scores[..., hidden + 1 :, hidden] = float("-inf")
        weights = scores.softmax(-1)
        return weights @ v, weights

    monkeypatch.setattr(llm, "attention", attention)
    expected = model(torch.tensor([ids]))[0, -1]
    script = """const whole = model.forward(arguments[0], new Cache(L));
        const other = model.forward(arguments[0], whole.fork(arguments[1] + 1), [], arguments[1]);
        return Array.from(model.predict(other, 5))"""
    found = torch.tensor(page.execute_script(script, ids, hidden))
    assert torch.allclose(found, expected, rtol=0, atol=1e-3)
    monkeypatch.undo()
    assert not torch.allclose(found, model(torch.tensor([ids]))[0, -1], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "text, word, endings",
    [
        ("Они подошли к", "больш", ["ой", "ому", "ую", "их"]),
        ("Он пришёл.", "", ["он", "его", "ему", "Они"]),  # <EOS> comes before the capital letter only
    ],
)
def test_case_endings_are_ranked_as_python_ranks_them(page, model, tokenizer, text, word, endings):
    before = encode(tokenizer, text)[:-1]
    scores = []
    for ending in endings:
        ids = encode_prompt(tokenizer, f"{text} {word}{ending}")[1]
        start = len(encode_prompt(tokenizer, text)[1]) if ending[0].isupper() else 1 + len(before)
        logs = model(torch.tensor([ids]))[0].log_softmax(-1)
        scores.append(sum(logs[at - 1, ids[at]] for at in range(start, len(ids))))
    expected = sorted(zip(torch.stack(scores).softmax(0).tolist(), endings), reverse=True)
    found = page.execute_script("return endings(...arguments)", text, word, endings)
    assert [row["ending"] for row in found] == [ending for _, ending in expected]
    assert [row["p"] for row in found] == pytest.approx([p for p, _ in expected], abs=1e-3)


def test_arrow_keys_choose_tokens(page):
    type_text(page, "Волга впадает в")
    last = page.execute_script("document.querySelector('#strip').lastChild.focus(); return state.at")
    for step in (1, 2):
        page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
        assert page.execute_script("return state.at") == last - step
        assert page.switch_to.active_element.get_attribute("aria-pressed") == "true"
    script = "return Array.from(document.querySelector('#strip').children, (button) => button.tabIndex)"
    assert page.execute_script(script) == [0 if at == last - 2 else -1 for at in range(last + 1)]


def test_a_click_on_the_map_chooses_the_row_and_leaves_the_weight_to_read(page):
    type_text(page, "Волга впадает в")
    script = """const map = document.querySelector('#attention .large canvas');
        const { left, top, width, height } = map.getBoundingClientRect(), T = state.ids.length;
        const at = { clientX: left + (0.5 * width) / T, clientY: top + (2.5 * height) / T, bubbles: true };
        map.dispatchEvent(new MouseEvent('click', at));
        return [state.at, document.querySelector('#attention .note').textContent]"""
    at, note = page.execute_script(script)
    assert at == 2 and "attends to <EOS>: " in note and note.endswith("%")


def test_the_chosen_card_stays_in_sight(page):
    type_text(page, "Волга впадает в Каспийское море, а Нева — в Балтийское. " * 3)
    script = """document.querySelector('#tokens .box').scrollTop = 40;
        document.querySelector('#tokens .tokens').children[20].click();
        return document.querySelector('#tokens .box').scrollTop"""
    assert page.execute_script(script) == 40


def test_keys_of_later_tokens_are_not_listed(page):
    type_text(page, "Волга впадает в")
    names = page.execute_script(
        "choose(1); draw_head(); "
        "return document.querySelector('#attention .vectors .strips div').children.length"
    )
    assert names == 4  # the query before and after it is turned, and two keys


def test_a_text_longer_than_the_window_says_so(page, tokenizer):
    text = "Волга впадает в Каспийское море. " * 30
    type_text(page, text)
    count = len(encode_prompt(tokenizer, text)[1])
    assert f"only the last 128 of {count} tokens" in page.find_element("id", "status").text
    type_text(page, "Волга")
    assert " of 128 tokens" in page.find_element("id", "status").text


def test_two_clicks_on_continue_draw_one_token_per_frame(page):
    type_text(page, "Волга")
    script = """const real = [requestAnimationFrame, cancelAnimationFrame];
        const waiting = new Map();
        let count = 0;
        window.requestAnimationFrame = (draw_next) => (waiting.set(++count, draw_next), count);
        window.cancelAnimationFrame = (frame) => waiting.delete(frame);
        for (let i = 0; i < 2; i++) document.getElementById('continue').click();
        [window.requestAnimationFrame, window.cancelAnimationFrame] = real;
        return waiting.size"""
    assert page.execute_script(script) == 1


def test_a_drawn_part_of_a_character_has_no_merges(page):
    type_text(page, "Волга")
    script = """const real = pick;
        pick = () => tokenizer.byte_ids[0xd0]; // the first byte of many Russian letters
        extend(1);
        pick = real;
        return [state.tokens.at(-1).piece, document.querySelector('#tokens .merges table').textContent]"""
    assert page.execute_script(script) == ["", ""]


def test_nothing_jumps_while_typing(page):
    script = """draw_slow_sections();
        return Array.from(document.querySelectorAll('h2'), (title) => title.offsetTop)"""
    places = []
    for text in ("Волга", "Волга впадает в Каспийское море, а Нева — в Балтийское. " * 3):
        type_text(page, text)
        places.append(page.execute_script(script))
    assert places[0] == places[1]


def test_charts_are_large_enough_to_read(page):
    script = "return Array.from(document.querySelectorAll('.chart'), (chart) => chart.clientHeight)"
    heights = page.execute_script(script)
    assert len(heights) == 2 and min(heights) > 100
    texts = page.find_elements("css selector", "#context .chart text")
    assert {"0", "127"} <= {text.text for text in texts}  # positions count from 0, as everywhere


def test_a_hostile_prompt_shows_as_text(browser, model, tokenizer, tmp_path):
    browser.get(written(model, tokenizer, tmp_path, HOSTILE).as_uri())
    assert browser.find_element("id", "text").get_attribute("value") == HOSTILE
    buttons = browser.find_elements("css selector", "#strip .token")
    labels = [button.get_attribute("textContent") for button in buttons]
    assert labels[0] == EOS and "<" in "".join(labels[1:])
    assert len(browser.find_elements("css selector", "#tokens script")) == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_nothing_overflows_on_a_narrow_screen(page, browser, model, tokenizer, tmp_path):
    browser.get(written(model, tokenizer, tmp_path, "Столицей Франции является город").as_uri())
    narrow = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    wait_for(browser, "document.documentElement.scrollWidth <= 390")  # the drawing follows a moment later
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
