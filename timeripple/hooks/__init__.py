"""Puts attention with reuse into diffusers models and takes it out again."""

from timeripple.hooks.account import shortfall
from timeripple.hooks.apply import disable, enable, summary, transformers
from timeripple.hooks.clock import turns
from timeripple.hooks.families import FAMILIES, Family, family_of
from timeripple.hooks.transformer import HOOK

__all__ = [
    "FAMILIES",
    "HOOK",
    "Family",
    "disable",
    "enable",
    "family_of",
    "shortfall",
    "summary",
    "transformers",
    "turns",
]
