"""A small model, its page, and a browser, for the tests of the page."""

import shutil
import time

import numpy as np
import pytest
import torch
from helpers import write_log

from corpus.sources import BUNDLED_FILE
from corpus.tokenizer import train_tokenizer
from interpretability.measurements import measure
from interpretability.page import make_page
from interpretability.snapshots import snapshot_losses
from llm import LLM

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(BUNDLED_FILE.read_text(encoding="utf-8").splitlines()[:30], 500)


@pytest.fixture(scope="module")
def model(tokenizer) -> LLM:
    """No weight zero, each one that float16 can hold."""
    torch.manual_seed(0)
    model = LLM(tokenizer.get_vocab_size(), 32, 2, 3, 128).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.2).half())
    return model


def written(model, tokenizer, folder, prompt, snapshots=()):
    """A page in the folder. snapshots: [(step, path)]."""
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=800).astype(np.uint16)
    write_log(folder, step=[10, 20], train_loss=[5.5, 4.5], val_loss=[5.6, 4.7])
    measured = measure(model, tokenizer, tokens, tokens[:200], folder)
    if snapshots:
        measured["snapshots"] = snapshot_losses(model, snapshots, 20, tokens, tokens[:200], eval_windows=128)
    path = folder / "visualization.html"
    path.write_text(make_page(model, tokenizer, measured, prompt, snapshots), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=1280,900"
    for flag in flags.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def type_text(page, text):
    script = (
        "const t = document.getElementById('text'); t.value = arguments[0]; "
        "t.dispatchEvent(new Event('input'))"
    )
    page.execute_script(script, text)


def move_slider(page, name, value):
    script = "const [s, value] = arguments; s.value = value; s.dispatchEvent(new Event('input'))"
    page.execute_script(script, page.find_element("id", name), value)


def wait_for(page, condition: str) -> None:
    """Wait until a condition in JavaScript holds, for half a minute at most."""
    until = time.monotonic() + 30
    while not page.execute_script(f"return {condition}"):
        assert time.monotonic() < until, condition
        time.sleep(0.05)
