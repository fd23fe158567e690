"""docs/use_your_model_elsewhere.md: what it shows is run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import NO_HUB, ROOT, call
from small_models import trace

from llm import LLM

PAGE = (ROOT / "docs" / "use_your_model_elsewhere.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not find_spec("transformer_lens"), reason="needs the package transformer-lens")
def test_transformer_lens_shows_the_attention_of_our_model(trained, tmp_path):
    for name in ("parameters.pt2", "bpe_tokenizer.json"):
        shutil.copy(trained / name, tmp_path)
    assert call("export.py", "--out_dir", tmp_path).code == 0
    snippet = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    snippet += "import torch; torch.save((ids, logits, weights, layer, head), 'theirs.pt')\n"
    env = {**os.environ, **NO_HUB, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    ids, logits, weights, layer, head = torch.load(tmp_path / "theirs.pt")
    ours = trace(LLM.load(tmp_path / "parameters.pt2"), ids)
    assert (ours.logits - logits).abs().max() < 1e-4
    assert (ours.layers[layer].weights[0, head] - weights).abs().max() < 1e-5
    shown = [line.split() for line in done.stdout.splitlines() if " 0.00" in line or " 1.00" in line]
    assert shown[0][:2] == ["<EOS>", "1.00"] and len(shown) >= len(weights) - 1


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_two_lines_publish_the_page(tmp_path):
    remote, clone = tmp_path / "remote.git", tmp_path / "clone"
    subprocess.run(["git", "init", "-q", "--bare", remote], check=True)
    clone.mkdir()
    (clone / "visualization.html").write_text("the page")
    lines = re.search(r"```\n(git init .*?)```", PAGE, re.DOTALL)[1]
    assert lines.count("\n") == 2
    lines = lines.replace("https://github.com/YOU/REPOSITORY.git", str(remote))
    names = [f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    env = {**os.environ, **dict.fromkeys(names, "x@example.org")}
    subprocess.run(["bash", "-ec", lines], cwd=clone, env=env, check=True, capture_output=True)
    show = ["git", "-C", remote, "show", "gh-pages:index.html"]
    assert subprocess.run(show, capture_output=True, text=True).stdout == "the page"


def test_its_flags_and_links_exist():
    script = (ROOT / "export.py").read_text(encoding="utf-8")
    for flag in set(re.findall(r"export\.py[^\n`]*|`(--\w+ [^`]*)`", PAGE)):
        assert all(f'"{name}"' in script for name in re.findall(r"--\w+", flag)), flag
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists() or link.startswith("https:"), link
    assert Path(ROOT / "visualize.py").exists()
