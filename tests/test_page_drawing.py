"""The drawing of the whole model shows what the model computes, and answers to mouse and keyboard."""

import copy

import pytest
import torch
from pages import browser, model, needs_browser, tokenizer, type_text, written  # noqa: F401
from small_models import trace

from corpus.tokenizer import encode_prompt

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
pytestmark = needs_browser
TEXT = "Волга впадает в Каспийское море"


@pytest.fixture(scope="module")
def opened(browser, model, tokenizer, tmp_path_factory):
    browser.get(written(model, tokenizer, tmp_path_factory.mktemp("page"), TEXT).as_uri())
    return browser


@pytest.fixture
def page(opened):
    type_text(opened, TEXT)
    yield opened
    assert opened.get_log("browser") == []


def part(page, name):
    return page.find_element("css selector", f'#drawing [data-part="{name}"]')


def point_at(page, name):
    script = "arguments[0].dispatchEvent(new PointerEvent('pointerover', { bubbles: true }))"
    page.execute_script(script, part(page, name))


def click(page, name):
    script = "arguments[0].dispatchEvent(new PointerEvent('click', { bubbles: true }))"
    page.execute_script(script, part(page, name))


def ids_of(tokenizer):
    return encode_prompt(tokenizer, TEXT)[1]


def test_every_part_is_drawn(page, model, tokenizer):
    script = "return Array.from(document.querySelectorAll('#drawing .part'), (x) => x.dataset.part)"
    names = page.execute_script(script)
    heads = [f"head-{n}-{h}" for n in range(3) for h in range(2)]
    layers = [f"mlp-{n}" for n in range(3)] + [f"guess-{n}" for n in range(4)]
    assert {*heads, *layers, "stream", "embedding", "prediction"} <= set(names)
    assert len(names) == len(set(names))
    tokens = [f"token-{s}" for s in range(len(ids_of(tokenizer)))]
    assert [name for name in names if name.startswith("token")] == tokens


def test_it_shows_what_the_heads_do(page, model, tokenizer):
    """Which token each head looks at most, and how much each part adds."""
    expected = trace(model, torch.tensor([ids_of(tokenizer)]))
    found = page.execute_script("return shown.parts.layers.map(({ heads, mlp }) => ({ mlp, heads }))")
    for layer, parts in zip(expected.layers, found):
        assert parts["mlp"] == pytest.approx(layer.mlp_output[0, -1].norm().item(), rel=1e-3)
        for h, head in enumerate(parts["heads"]):
            assert head["most"] == layer.weights[0, h, -1].argmax().item()
            assert head["written"] == pytest.approx(layer.head_outputs[0, h, -1].norm().item(), rel=1e-3)


def test_the_prediction_on_top_is_the_model_s(page, model, tokenizer):
    p, best = model(torch.tensor([ids_of(tokenizer)]))[0, -1].softmax(-1).max(-1)
    rows = part(page, "prediction").text
    assert f"{100 * p:.1f}%" in rows
    assert page.execute_script("return shown.guesses[L][0].id") == best.item()


def test_pointing_at_a_head_says_what_happens_without_it(page, model, tokenizer):
    point_at(page, "head-1-1")
    page.execute_async_script("setTimeout(arguments[0], 600)")
    note = page.find_element("css selector", "#drawing .said").text
    assert "Head 2 of layer 2" in note and "Looks most at" in note and "Without it" in note
    expected = trace(model, torch.tensor([ids_of(tokenizer)]), {(1, 1)}).logits[0, -1].softmax(-1)
    found = page.execute_script("return Array.from(comparing.p)")
    assert torch.allclose(torch.tensor(found), expected, rtol=0, atol=1e-4)
    assert page.execute_script("return state.ablated.flat().some(Boolean)") is False


@pytest.mark.parametrize(
    "name, words",
    [
        ("embedding", "Looks up the vector"),
        ("stream", "adds its own vector"),
        ("prediction", "What comes after"),
        ("token-1", "has id"),
        ("guess-1", "An orange frame"),
    ],
)
def test_pointing_at_a_part_says_what_it_is(page, name, words):
    point_at(page, name)
    assert words in page.find_element("css selector", "#drawing .said").text
    click(page, name)


def test_on_a_touch_screen_the_first_tap_points_and_the_second_goes_to_the_section(page):
    script = """const scroll = Element.prototype.scrollIntoView, gone = [];
        Element.prototype.scrollIntoView = function () { gone.push(this.id); };
        const after = ["mlp-1", "mlp-0", "mlp-0"].map((name) => {
          const part = document.querySelector(`#drawing [data-part="${name}"]`);
          part.dispatchEvent(new PointerEvent("pointerdown", { bubbles: true, pointerType: "touch" }));
          part.dispatchEvent(new MouseEvent("click", { bubbles: true })); // without pointerType, as in Safari
          return gone.length;
        });
        Element.prototype.scrollIntoView = scroll;
        pointer_type = tapped = null;
        return [after, gone]"""
    assert page.execute_script(script) == [[0, 0, 1], ["mlp"]]


def test_a_part_that_is_off_says_so(page):
    for name, place in (("head-0-1", "0, 1"), ("mlp-1", "1, H")):
        whole = part(page, name).get_attribute("aria-label")
        page.execute_script(f"toggle({place})")
        assert part(page, name).get_attribute("aria-label") == f"{whole}, switched off"
        page.execute_script(f"toggle({place})")
        assert part(page, name).get_attribute("aria-label") == whole


def test_a_part_that_is_deleted_is_no_longer_pointed_at(page, tokenizer):
    point_at(page, f"token-{len(ids_of(tokenizer)) - 1}")
    type_text(page, "Волга")
    assert page.execute_script("return pointed") is None
    assert "After" in page.find_element("css selector", "#drawing .said").text


def test_the_frame_of_the_final_prediction_stays_orange(page):
    script = """const colour = () => getComputedStyle(document.querySelector('.chip-frame.right')).stroke;
        const before = colour();
        arguments[0].focus();
        return [before, colour()]"""
    before, focused = page.execute_script(script, part(page, "guess-3"))
    assert before == focused
    page.execute_script("document.activeElement.blur()")


def test_long_tokens_are_cut_in_the_prediction(page):
    script = """tokenizer.label = () => 'ы'.repeat(30);
        draw_answer();
        const texts = Array.from(document.querySelectorAll('#drawing .answer text'), (x) => x.textContent);
        delete tokenizer.label; // that of the class again
        draw();
        return texts"""
    assert max(map(len, page.execute_script(script))) == 11


def test_a_click_goes_to_the_section_with_the_head_chosen(page):
    click(page, "head-2-1")
    assert page.execute_script("return [state.layer, state.head]") == [2, 1]
    button = page.find_element("css selector", '#attention [aria-label="layer 3, head 2"]')
    assert button.get_attribute("aria-pressed") == "true"
    page.execute_async_script("setTimeout(arguments[0], 1500)")  # while it scrolls
    script = """const bottom = (selector) => document.querySelector(selector).getBoundingClientRect().bottom;
        return [bottom('header'), bottom('#attention h2'), innerHeight]"""
    header, heading, window = page.execute_script(script)
    assert header < heading < window
    click(page, "mlp-0")
    assert page.execute_script("return state.layer") == 0
    click(page, "token-1")
    assert page.execute_script("return state.at") == 1


def test_the_keyboard_reaches_and_switches_parts(page, model, tokenizer):
    """Space switches the MLP of layer 2 off, and the drawing keeps the focus."""
    page.execute_script("arguments[0].focus()", part(page, "mlp-1"))
    page.switch_to.active_element.send_keys(Keys.SPACE)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[1].mlp.down_proj.weight.zero_()
    expected = other(torch.tensor([ids_of(tokenizer)]))[0, -1]
    found = torch.tensor(page.execute_script("return Array.from(model.predict(cache, state.at))"))
    assert torch.allclose(found, expected, rtol=0, atol=1e-3)
    assert page.switch_to.active_element.get_attribute("data-part") == "mlp-1"
    assert "off" in part(page, "mlp-1").get_attribute("class")
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert page.execute_script("return state.ablated.flat().some(Boolean)") is False
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.execute_script("return state.layer") == 1
    page.execute_script("arguments[0].focus()", part(page, "token-1"))
    page.switch_to.active_element.send_keys(Keys.SPACE)  # which acts like Enter on a part without a switch
    assert page.execute_script("return state.at") == 1


def test_the_sign_beside_a_head_switches_it_off(page, model, tokenizer):
    sign = part(page, "head-0-1").find_element("css selector", ".power")
    page.execute_script("arguments[0].dispatchEvent(new PointerEvent('click', { bubbles: true }))", sign)
    expected = trace(model, torch.tensor([ids_of(tokenizer)]), {(0, 1)}).logits[0, -1]
    found = torch.tensor(page.execute_script("return Array.from(model.predict(cache, state.at))"))
    assert torch.allclose(found, expected, rtol=0, atol=1e-3)
    page.execute_script("toggle(0, 1)")


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_all_of_it_is_inside_at_any_width_and_any_text(page, width):
    view = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    for text in ("", "Волга", TEXT * 12):
        type_text(page, text)
        page.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 100))")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        outside = page.execute_script(
            """const box = document.querySelector('#drawing .model').getBoundingClientRect();
            const parts = Array.from(document.querySelectorAll('#drawing .part'));
            return parts.filter((part) => {
                const { left, right, top, bottom } = part.getBoundingClientRect();
                return left < box.left - 1 || right > box.right + 1 ||
                    top < box.top - 1 || bottom > box.bottom + 1;
            }).map((part) => part.dataset.part)"""
        )
        assert outside == [], (width, text)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
