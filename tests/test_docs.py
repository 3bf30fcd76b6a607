"""Links lead somewhere, commands parse, and Python compiles, in every page."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from vise_jax import config as vise_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Placeholders of commands are in capitals: CONFIG, TASK.
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in map(slug, headings), target


def commands(page: Path) -> list[str]:
    """Return the shell commands of a page: indented or fenced lines, continued ones joined."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    |\t)(.+)$", text, re.M)
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S):
        if language in ("", "bash", "sh", "console"):
            lines += block.splitlines()
    found = []
    for line in lines:
        found += re.findall(r"python ((?:scripts|benchmarks)/\w+\.py[^;&|#]*)", line.split("   #")[0])
    return found


COMMANDS = sorted({(str(page.relative_to(ROOT)), command.strip()) for page in PAGES for command in commands(page)})


@cache
def flags_of(script: str) -> set[str]:
    source = (ROOT / script).read_text()
    names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"([\w-]+)"', source))
    return names | ({"config"} if "define_config" in source else set()) | {"help"}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_parse(page, command, load_config):
    script, *words = shlex.split(re.sub(r"\[.*?\]|…", "", command))
    assert (ROOT / script).is_file()
    words = words[: words.index("--")] if "--" in words else words
    keys = set()
    for number, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if name.startswith("config."):
            keys.add(name.removeprefix("config."))
            continue
        assert name in flags_of(script) or name.removeprefix("no") in flags_of(script), word
        if name == "config":
            value = value if equals else words[number + 1]
            if value.startswith("configs/") and not PLACEHOLDER.search(value):
                config = load_config(value)
                vise_config.validate(config)
    every = {*vise_config.flat(vise_config.base()), *vise_config.flat(vise_config.evaluation())}
    assert not {key for key in keys if not PLACEHOLDER.search(key)} - every


def test_there_are_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        ast.parse(block)
