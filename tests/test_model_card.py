"""The model card, as huggingface_hub reads it. No test asks the hub."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import call
from huggingface_hub import ModelCard

from corpus.sources import STANDS_IN_FOR

LOG = (
    "step,tokens,seconds,train_loss,val_loss,bits_per_char,learning_rate,tokens_per_second\n"
    "7,57344,90,3.25,4.56789,2.3456,0.1,8000\n"
)


def results_for(out: Path, text: str) -> dict:
    """Results as evaluate.py saves them, of the weights in a folder that were trained on this text."""
    bits = {"model": {"perplexity": 51.0321, "bits_per_char": 1.81649}, "xz": {"bits_per_char": 3.338}}
    bits["bigram counts"] = {"perplexity": 128.6, "bits_per_char": 2.244}
    return {
        "weights": hashlib.blake2b((out / "parameters.pt2").read_bytes(), digest_size=8).hexdigest(),
        "text": {"name": f"the articles held out from {text}", "bits": bits},
        "facts": {"name": "data/facts.jsonl", "overall": {"count": 769, "exact": 0.764}},
        "cases": {"overall": {"count": 1673, "accuracy": 0.88523}, "chance": 0.227},
        "pairs": {"name": "RussianNLP/rublimp", "overall": {"count": 22578, "accuracy": 0.80717}},
    }


@pytest.fixture
def out(trained, tmp_path) -> Path:
    for name in ("parameters.pt2", "bpe_tokenizer.json"):
        shutil.copy(trained / name, tmp_path)
    (tmp_path / "training_log.csv").write_text(LOG)
    return tmp_path


def trained_on(out: Path, dataset: str) -> None:
    """Say of the weights that they were trained on another text."""
    state = torch.load(out / "parameters.pt2", weights_only=True)
    state["_extra_state"]["settings"]["dataset"] = dataset
    torch.save(state, out / "parameters.pt2")


def card_of(out: Path, *flags) -> ModelCard:
    done = call("export.py", "--out_dir", out, *flags)
    assert done.code == 0, done.err
    return ModelCard((out / "huggingface" / "README.md").read_text(encoding="utf-8"))


def test_the_metadata_survives_the_round_trip(out):
    trained_on(out, STANDS_IN_FOR)
    (out / "evaluation.json").write_text(json.dumps(results_for(out, STANDS_IN_FOR)))
    card = card_of(out, "--license", "cc-by-sa-4.0", "--hardware", "a laptop")
    data = card.data
    assert (data.language, data.license, data.datasets) == ("ru", "cc-by-sa-4.0", [STANDS_IN_FOR])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    held_out = "held-out articles"
    got = set()
    for r in data.eval_results:
        got.add((r.metric_name, r.metric_type, r.dataset_type, r.dataset_split, r.metric_value))
    assert got == {
        ("bits per character", "bits_per_character", STANDS_IN_FOR, held_out, 1.81649),
        ("perplexity per token", "perplexity", STANDS_IN_FOR, held_out, 51.0321),
        ("case endings", "accuracy", STANDS_IN_FOR, held_out, 0.88523),
        ("facts completed word for word", "accuracy", "facts.jsonl", None, 0.764),
        ("minimal pairs", "accuracy", "RussianNLP/rublimp", None, 0.80717),
    }
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()
    index = data.to_dict()["model-index"]
    assert len(index) == 1 and {each["task"]["type"] for each in index[0]["results"]} == {"text-generation"}
    rows = ["| 1.816 |", "| 88.5% | chance 22.7%", "| 80.7% | chance 50%"]
    rows += ["| hardware | a laptop |", "1.5 minutes"]
    assert all(row in card.text for row in rows), card.text


def test_without_results_it_claims_none(out):
    trained_on(out, "bundled")
    results = results_for(out, "bundled") | {"weights": "of another model"}
    (out / "evaluation.json").write_text(json.dumps(results))
    card = card_of(out)
    assert card.data.eval_results is None
    assert "model-index" not in card.content and "measured" not in card.text
    assert card.data.license == "mit" and card.data.datasets is None
    assert "hardware of the export" in card.text
    before = card.content
    (out / "evaluation.json").unlink()
    (out / "training_log.csv").write_text("edited by hand\n")
    assert card_of(out).data.to_dict() == ModelCard(before).data.to_dict()


@pytest.mark.parametrize("part", ["text", "facts", "cases", "pairs"])
def test_results_edited_by_hand_are_left_out(out, part):
    for broken in ([1], {"overall": 3, "name": "a", "bits": {}}, {"overall": {"count": 5}, "name": None}):
        (out / "evaluation.json").write_text(json.dumps(results_for(out, "bundled") | {part: broken}))
        assert card_of(out).data.language == "ru"


def test_a_path_of_this_machine_stays_here(out, trained):
    """conftest's model was trained on a file."""
    secret = str(trained / "text.jsonl")
    pairs = {"name": str(out / "p.csv"), "overall": {"count": 1, "accuracy": 1.0}}
    results = results_for(out, secret) | {"pairs": pairs}
    (out / "evaluation.json").write_text(json.dumps(results))
    card = card_of(out)
    assert str(trained) not in card.content and str(out) not in card.content
    assert card.data.datasets is None and card.data.license == "unknown"
    assert {each.dataset_type for each in card.data.eval_results} == {"text.jsonl", "facts.jsonl", "p.csv"}
    assert "--license" in call("export.py", "--out_dir", out).out


@pytest.mark.parametrize("license", ["", "CC BY", "mit\nlanguage: en"])
def test_a_license_the_hub_cannot_have_is_one_line(out, license):
    done = call("export.py", "--out_dir", out, "--license", license)
    assert done.code == 2 and done.err.startswith("export.py: --license") and len(done.err.splitlines()) == 1
