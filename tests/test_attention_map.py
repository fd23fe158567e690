"""The picture of all attention weights."""

import pytest
from matplotlib.image import imread
from small_models import HEADS, LAYERS, small_model

from corpus.tokenizer import EOS, train_tokenizer
from interpretability.attention_map import attention_png, token_label
from llm import LLM
from support.cli import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Мама мыла раму. Папа читал газету. " * 20], 300)


def test_token_labels_show_white_space(tokenizer):
    def shown(text):
        return "".join(token_label(tokenizer, i) for i in tokenizer.encode(text).ids)

    assert shown("a b\n\tc") == "a·b↵⇥c"
    assert token_label(tokenizer, tokenizer.token_to_id(EOS)) == EOS
    assert "�" in shown("日")


@pytest.mark.parametrize("text", ["Мама мыла раму.", "", "$x$ \\frac{ <b>"])
def test_attention_png_is_a_picture(tokenizer, tmp_path, text):
    model = LLM(tokenizer.get_vocab_size(), 16, HEADS, LAYERS, 64).eval()
    attention_png(model, tokenizer, text, tmp_path / "heads.png")
    assert [path.name for path in tmp_path.iterdir()] == ["heads.png"]
    height, width, _ = imread(tmp_path / "heads.png").shape
    assert 500 < width < 6100 and 500 < height < 6100


def test_attention_png_refuses_a_text_longer_than_the_window(tokenizer, tmp_path):
    with pytest.raises(UserError, match="at once"):
        attention_png(small_model(), tokenizer, "Мама мыла раму. " * 50, tmp_path / "heads.png")
    assert not list(tmp_path.iterdir())
