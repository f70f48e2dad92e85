"""``python -m torchrl_edp.configs`` prints what each preset sets, as Markdown."""

from torchrl_edp.configs.table import presets_table

print(presets_table())
