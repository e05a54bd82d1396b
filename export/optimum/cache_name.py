"""How the installed transformers calls a cache, the one name in which its versions differ."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

from shoal.graphs.errors import InputError

_NAMES = ("cache", "past_key_values")

CACHE = next(
    field.name for field in dataclasses.fields(CausalLMOutputWithPast) if field.name in _NAMES
)
"""``cache`` from transformers 5.24 on, ``past_key_values`` before: of an argument of ``forward``
and ``generate``, and of what they return."""


def take_cache(options: dict[str, Any]) -> Any:
    """Take the cache out of ``options``, whatever it is called there; None if there is none.

    Raises:
        InputError: there are two.
    """
    found = [options.pop(name, None) for name in _NAMES]
    if None not in found:
        raise InputError("cache: give one of cache and past_key_values, they are the same")
    return next((cache for cache in found if cache is not None), None)
