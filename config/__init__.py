"""Sizes and switches of a model: dataclasses, presets and the command line that overrides them."""
