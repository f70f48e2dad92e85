"""README's Python runs as it stands, and its tables are what the package prints."""

import re
from pathlib import Path

import pytest

from torchrl_edp.configs.table import presets_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_has_python():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_readme_block_runs(block):
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102


@pytest.mark.parametrize("page", ["README.md", "examples/results/README.md", "examples/reproduce/README.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
    assert links
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_readme_shows_the_presets():
    remedy = "Put the output of `python -m torchrl_edp.configs` between the lines <!-- presets --> and "
    remedy += "<!-- end presets --> of README.md."
    shown = re.search(r"<!-- presets -->\n(.*?)<!-- end presets -->", README, re.DOTALL)
    assert shown, remedy
    assert shown[1].strip() == presets_table(), remedy
