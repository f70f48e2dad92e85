"""What each preset sets, as Markdown: ``python -m torchrl_edp.configs``."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from torchrl_edp.configs.experiments import EXPERIMENTS
from torchrl_edp.configs.help import value_text
from torchrl_edp.configs.presets import REFERENCE_CLIPS, preset_values

_COLUMNS = ("default", "paper", "reference")  # reference-dpm is a sentence
_EXAMPLES = {
    "locomotion": "hopper/medium-v0",
    "antmaze": "antmaze/umaze-v0",
    "adroit": "pen/human-v0",
    "kitchen": "kitchen/complete-v0",
    "maze": "pointmaze/umaze-v0",
}
_EVERYWHERE = "all three scripts"


def presets_table() -> str:
    """Tables of the settings in which presets differ, for all scripts and for each; then those that are the same."""
    cells = {experiment: _cells(experiment) for experiment in EXPERIMENTS}
    keys = dict.fromkeys(key for rows in cells.values() for key in rows)
    tables: dict[str, list[str]] = {_EVERYWHERE: [], **{name: [] for name in EXPERIMENTS}}
    same = []
    for key in keys:
        rows = {name: cells[name][key] for name in EXPERIMENTS if key in cells[name]}
        alike = len(set(rows.values())) == 1
        constant = {name: row[0] for name, row in rows.items() if len(set(row)) == 1}
        if alike and constant:
            same.append(f"`{key}` {next(iter(constant.values()))}")
        elif alike and len(rows) == len(EXPERIMENTS):
            tables[_EVERYWHERE].append(_line(key, rows["edp_iql"]))
        else:
            same += [f"`{key}` {text} ({name})" for name, text in constant.items()]
            for name in rows.keys() - constant.keys():
                tables[name].append(_line(key, rows[name]))
    parts = [_table(name, lines) for name, lines in tables.items()]
    return "\n\n".join([*parts, _dpm(), f"The same in all of them: {'; '.join(same)}."])


def _cells(experiment: str) -> dict[str, tuple[str, ...]]:
    """Setting -> its text under each of ``_COLUMNS``."""
    default = OmegaConf.structured(EXPERIMENTS[experiment]())
    values = {
        (preset, domain): preset_values(preset, experiment, name)
        for preset in _COLUMNS
        for domain, name in _EXAMPLES.items()
    }
    keys = dict.fromkeys(key for found in values.values() for key in found)
    rows = {}
    for key in keys:
        usual = OmegaConf.select(default, key)
        rows[key] = tuple(_cell({d: values[p, d].get(key, usual) for d in _EXAMPLES}) for p in _COLUMNS)
    low, high = min(REFERENCE_CLIPS.values()), max(REFERENCE_CLIPS.values())
    rows["optim.clip_grad"] = (*rows["optim.clip_grad"][:2], f"{low:g} to {high:g}, by data set")
    return rows


def _cell(by_domain: dict[str, Any]) -> str:
    """The value on locomotion, then the domains that have another."""
    texts = {domain: _text(value) for domain, value in by_domain.items()}
    usual = texts.pop("locomotion")
    others: dict[str, list[str]] = {}
    for domain, text in texts.items():
        if text != usual:
            others.setdefault(text, []).append(domain)
    if list(others.values()) == [list(texts)]:
        return f"{usual}; elsewhere {next(iter(others))}"
    return "; ".join([usual, *(f"{', '.join(domains)} {text}" for text, domains in others.items())])


def _text(value: Any) -> str:
    text = value_text(value)
    return (text[1:-1] or "none") if text.startswith("{") else text


def _line(key: str, row: tuple[str, ...]) -> str:
    return f"| `{key}` | {' | '.join(row)} |"


def _table(name: str, lines: list[str]) -> str:
    title = name if name == _EVERYWHERE else f"`{name}.py`"
    return "\n".join([f"| {title} | {' | '.join(_COLUMNS)} |", "|---" * (len(_COLUMNS) + 1) + "|", *lines])


def _dpm() -> str:
    values, others = (preset_values(name, "edp_iql", "hopper/medium-v0") for name in ("reference-dpm", "reference"))
    changes = [f"`{key}` {_text(value)}" for key, value in values.items() if value != others[key]]
    return f"`reference-dpm` is `reference` with {'; '.join(changes)}."
