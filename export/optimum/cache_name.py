"""How the installed transformers calls a cache, the one name in which its versions differ."""

from __future__ import annotations

import dataclasses

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = next(
    field.name
    for field in dataclasses.fields(CausalLMOutputWithPast)
    if field.name in ("cache", "past_key_values")
)
"""``cache`` from transformers 5.24 on, ``past_key_values`` before: of an argument of ``forward``
and ``generate``, and of what they return."""
