"""The README leads where it says: linked lines hold the names they show, and the files it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_to_lines_hold_the_names():
    links = re.findall(r"\[`(\w+)`\]\(([\w/]+\.py)#L(\d+)\)", README)
    assert len(links) > 10
    for name, file, line in links:
        code = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"(class|def) {name}\b", code), f"{file}#L{line} is not {name}: {code}"


def test_the_files_are_there_and_all_named():
    layout = README.split("## The layout")[1].split("## ")[0]
    folders = "corpus support evaluation interpretability experiments exercises publishing".split()
    modules = {path.name for folder in folders for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\w+\.py", layout)) == {path.name for path in ROOT.glob("*.py")} | modules
    for file in (ROOT / "README.md", ROOT / "docs" / "measurements.md"):
        links = re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8"))
        assert all((file.parent / link).exists() for link in links if not link.startswith("https:")), links


def test_the_scripts_have_the_flags_it_shows():
    import params

    for flag in re.findall(r"^(?:\$ )?(?:python|torchrun) .*$", README, re.MULTILINE):
        for script, name in re.findall(r"(\w+\.py)(?=.*? --(\w+))", flag):
            assert hasattr(params, name) or f'"--{name}"' in (ROOT / script).read_text(encoding="utf-8"), flag


def test_it_is_short_enough_for_a_first_hour():
    assert README.count("\n") <= 150
