"""The page's map of recovered shares: the numbers of interpretability/patching.py, and a choice of head."""

import copy

import pytest
import torch
from pages import browser, model, move_slider, needs_browser, tokenizer, wait_for, written  # noqa: F401
from small_models import trace

from corpus.tokenizer import encode_prompt
from interpretability.case_pairs import pair_of_texts
from interpretability.patching import heads_and_mlps, patch

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
pytestmark = needs_browser
# opened() adds "word"
TEXTS = {"left": "Он шёл от", "right": "Он шёл к", "endings": "ой ом ому ого ую ая ие их им ими"}
WORDS = ["стар", "нов", "больш", "мал", "бел", "чуж", "молод", "чёрн", "русск", "древн"]


@pytest.fixture(scope="module")
def opened(browser, model, tokenizer, tmp_path_factory):
    """The page, with a snapshot that is near the model."""
    folder = tmp_path_factory.mktemp("page")
    earlier = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter.mul_(0.95)
    torch.save(earlier.state_dict(), folder / "step-00000003.pt2")
    snapshots = [(3, folder / "step-00000003.pt2")]
    browser.get(written(model, tokenizer, folder, "Волга впадает в Каспийское море", snapshots).as_uri())
    wait_for(browser, "cases_model === model")

    # The first word that makes a pair: the untrained model must prefer another ending after each text
    script = """const [{ left, right, endings: list }, words] = arguments;
        return words.find((word) => {
            compared.word = word;
            const side = (text) => ({ text, shares: endings(text, word, list.split(" ")) });
            return !make_pair([left, right].map(side)).problem;
        })"""
    TEXTS["word"] = browser.execute_script(script, TEXTS, WORDS)
    return browser


@pytest.fixture
def page(opened):
    """With TEXTS in the fields, and no error left in the console."""
    type_texts(opened, **TEXTS)
    yield opened
    assert opened.get_log("browser") == []


def type_texts(page, **texts):
    """Type into fields of the section, and wait until it has drawn."""
    script = """const labels = Array.from(document.querySelectorAll('#cases .fields label'));
        for (const [name, text] of Object.entries(arguments[0])) {
            const input = labels.find((label) => label.textContent === name).firstElementChild;
            input.value = text;
            input.dispatchEvent(new Event('input'));
        }
        window.drawn_before = document.querySelector('#cases .patching').firstChild"""
    page.execute_script(script, texts)
    wait_for(page, "document.querySelector('#cases .patching').firstChild !== drawn_before")
    wait_for_shares(page)


def wait_for_shares(page):
    wait_for(page, "!patching || patching.cells.every(({ share }) => share !== undefined)")


def shares(page):
    return page.execute_script("return patching.cells.map(({ share }) => share)")


def button(page, layer, head):
    row = page.find_elements("css selector", "#cases .patching tr:not(:first-child)")[layer]
    return row.find_elements("css selector", "button")[head]


def choose_in_section_3(page, layer, head):
    name = f"layer {layer + 1}, head {head + 1}"
    script = """document.querySelector(`#attention [aria-label="${arguments[0]}"]`).click()"""
    page.execute_script(script, name)


def python_pair(page, tokenizer):
    """The pair that Python makes of the two texts with the endings that the page finds likeliest."""
    sides = []
    for text in (TEXTS["left"], TEXTS["right"]):
        script = "return endings(...arguments)[0].ending"
        ending = page.execute_script(script, text, TEXTS["word"], TEXTS["endings"].split())
        sides.append(f"{text} {TEXTS['word']}{ending}")
    return pair_of_texts(tokenizer, *sides)


def test_the_shares_are_those_of_python(page, model, tokenizer):
    groups = {str(part): [part] for part in heads_and_mlps(model)}
    patched = patch(model, [python_pair(page, tokenizer)], groups, "")
    expected = {name: value["share"] for name, value in patched.recovered().items()}
    script = "return patching.cells.map(({ layer, head }) => [layer, head])"
    names = [
        f"head {layer + 1}.{head + 1}" if head < model.num_heads else f"MLP {layer + 1}"
        for layer, head in page.execute_script(script)
    ]
    assert sorted(names) == sorted(expected)
    assert shares(page) == pytest.approx([expected[name] for name in names], abs=1e-3)
    texts = page.execute_script("return patching.cells.map(({ cell }) => cell.textContent)")
    assert [int(text.removesuffix("%")) / 100 for text in texts] == pytest.approx(shares(page), abs=0.0051)


def test_a_cell_chooses_its_head(page, model, tokenizer):
    """With a click and Enter: in the map, the drawing and section 3. Beside it is where the head looks."""
    pair = python_pair(page, tokenizer)
    ways = ((lambda cell: cell.click(), 1, 1), (lambda cell: cell.send_keys(Keys.ENTER), 2, 0))
    for choose, layer, head in ways:
        choose(button(page, layer, head))
        assert page.execute_script("return [state.layer, state.head]") == [layer, head]
        pressed = page.execute_script(
            """return ['#cases .patching', '#attention .grid'].map((part) => {
                return document.querySelector(`${part} [aria-pressed="true"]`).getAttribute('aria-label');
            })"""
        )
        assert all(label.startswith(f"layer {layer + 1}, head {head + 1}") for label in pressed)
        selected = page.find_element("css selector", "#drawing .selected").get_attribute("data-part")
        assert selected == f"head-{layer}-{head}"
        looks = page.find_elements("css selector", "#looks small")
        found = [float(small.text.removesuffix("%")) for small in looks]
        expected = [
            100 * trace(model, torch.tensor([ids])).layers[layer].weights[0, head, -1]
            for ids in (pair.clean, pair.corrupt)
        ]
        assert found == pytest.approx(torch.cat(expected).tolist(), abs=0.06)
    assert page.execute_script("return document.activeElement.getAttribute('aria-label')") == pressed[0]


def test_a_head_chosen_elsewhere_is_marked_in_the_map(page):
    choose_in_section_3(page, 1, 0)
    assert button(page, 1, 0).get_attribute("aria-pressed") == "true"


def test_the_map_follows_the_slider(page):
    found = []
    for place in (1, 0, 1):
        move_slider(page, "place", place)
        wait_for(page, "cases_model === model")
        wait_for_shares(page)
        found.append(shares(page))
    assert found[0] == found[2] and found[0] != pytest.approx(found[1], abs=1e-3)


def test_texts_of_other_lengths_get_a_sentence(page, tokenizer):
    right = TEXTS["right"] + " тому"
    type_texts(page, right=right)
    said = page.find_element("css selector", "#cases .patching").text
    left_count, right_count = [len(encode_prompt(tokenizer, text)[1]) for text in (TEXTS["left"], right)]
    assert f"left has {left_count} tokens" in said and f"right has {right_count} tokens" in said
    assert page.find_elements("css selector", "#cases .patching table") == []
    choose_in_section_3(page, 0, 0)


def test_a_space_at_the_end_of_a_field_changes_nothing(page):
    before = shares(page)
    type_texts(page, **{name: text + " " for name, text in TEXTS.items()})
    assert shares(page) == before


def test_a_full_stop_before_a_small_letter_is_one_token(page, tokenizer):
    type_texts(page, left="Он пришёл.", right="Он пришёл,")
    script = """const sides = [[compared.left, "ого"], [compared.right, "ому"]];
        return make_pair(sides.map(([text, ending]) => ({ text, shares: [{ ending }] })))"""
    expected = pair_of_texts(tokenizer, f"Он пришёл. {TEXTS['word']}ого", f"Он пришёл, {TEXTS['word']}ому")
    found = page.execute_script(script)
    assert [found.get("clean"), found.get("corrupt")] == [expected.clean, expected.corrupt], found


def test_other_texts_without_a_pair_get_a_sentence(page):
    for fields, words in (
        ({"right": TEXTS["left"]}, "The same ending"),
        ({"endings": ""}, "Enter the endings"),
        ({"endings": "ого"}, "The same ending"),
        ({"left": "да " * 130}, "must fit into 128 tokens"),
    ):
        type_texts(page, **TEXTS | fields)
        assert words in page.find_element("css selector", "#cases .patching").text
    script = """const sides = [[compared.left, arguments[0]], [compared.right, arguments[1]]];
        return make_pair(sides.map(([text, ending]) => ({ text, shares: [{ ending }] }))).problem"""
    type_texts(page, **TEXTS)
    assert "the beginning of the other" in page.execute_script(script, "ой", "ойх")
    type_texts(page, word="")
    assert "right after the words" in page.execute_script(script, "ой", "ему")


def test_nothing_overflows_on_a_narrow_screen(page):
    view = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    assert page.execute_script("return patching !== null")
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    map_box = page.find_element("css selector", "#cases .patching .box")
    assert page.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", map_box)
    type_texts(page, right=TEXTS["right"] + " незнакомому")
    assert page.execute_script("return patching === null && document.documentElement.scrollWidth") <= 390
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
