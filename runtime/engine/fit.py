"""Does a bundle fit into memory, and how long may a context be: what it needs against what is left.

What a form of a bundle takes (measured against in tests/runtime/engine/test_fit.py):

    mapped      weights that are read where the file is mapped: shared, dropped when memory is short
    copied      weights that onnxruntime's own kernels repack into memory when they are loaded
    cache       the latent cache: so much per token of the context
    scratch     intermediate values of the longest step, estimated from above

All but the first is memory that only this process uses and that must exist. Native kernels copy
nothing, so with them a model larger than memory runs too: from the disk, and slowly.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shoal.graphs.cache_types import CacheType
from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.graphs.footprint import cache_token_bytes, loaded_weight_bytes, mapped_weight_bytes
from shoal.graphs.manifest import Manifest, ModelInfo, TensorInfo
from shoal.graphs.recipes import FLOAT32
from shoal.runtime.console.units import format_bytes
from shoal.runtime.engine.step import LARGEST_CHUNK, SCORE_BYTES, SMALLEST_CHUNK
from shoal.runtime.machine.memory import (
    FREE_MEMORY,
    GROUP_LIMIT,
    Memory,
    ResidentMemory,
    read_memory,
    read_resident,
)

Form = Literal["native", "portable"]

SMALLEST_CONTEXT = 512
"""A bundle is opened when at least this many tokens fit, unless fewer are asked for."""

_SESSION_BYTES = 8 << 20  # what onnxruntime keeps for two graphs, ...
_LAYER_BYTES = 1 << 20  # ... and for each layer in them
_STACK_BYTES = 8 << 20  # address space of a thread
_SESSIONS = 2  # decoder and head, each with a pool of threads
_ROW_COPIES = 2  # latents, and latents with rope keys
_SCORE_COPIES = 3  # scores, masked scores and shares of attention


@dataclass(frozen=True, kw_only=True)
class Need:
    """Memory that one form of a bundle takes."""

    form: Form
    model: ModelInfo
    mapped_bytes: int
    loading_bytes: int  # mapped while it is being copied
    copied_bytes: int
    token_bytes: int  # latent cache
    activation_bytes: int  # of one token
    attention_weight_bytes: int  # of one layer, in float32
    token_read_bytes: int  # weights that a token reads
    float_row_bytes: int  # a token in one layer's cache as floats, where those must be made

    def cache_bytes(self, tokens: int) -> int:
        """The latent cache of a context."""
        return tokens * self.token_bytes

    def scratch_bytes(self, tokens: int) -> int:
        """Intermediate values while a context of this length is read."""
        chunk = min(tokens, LARGEST_CHUNK)
        fixed = _SESSION_BYTES + self.model.num_hidden_layers * _LAYER_BYTES
        scratch = fixed + chunk * self.activation_bytes + self.attention_weight_bytes
        if self.form == "portable":
            row_bytes = 4 * self.model.num_attention_heads * tokens
            longest = max(SCORE_BYTES, SMALLEST_CHUNK * row_bytes)
            scratch += _SCORE_COPIES * min(longest, chunk * row_bytes)
            scratch += _ROW_COPIES * tokens * self.float_row_bytes
        return scratch

    def anonymous_bytes(self, tokens: int) -> int:
        """Memory that only this process uses, with a context of this length."""
        return self.copied_bytes + self.cache_bytes(tokens) + self.scratch_bytes(tokens)

    def longest_context(self, free_bytes: int) -> int:
        """Tokens of the longest context that fits, at most the model's own limit; 0 if none."""
        fits, too_long = 0, self.model.max_position_embeddings + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.anonymous_bytes(middle) <= free_bytes:
                fits = middle
            else:
                too_long = middle
        return fits


@dataclass(frozen=True, kw_only=True)
class Room:
    """What is left for memory that only this process uses."""

    free_bytes: int  # without swap
    swap_bytes: int
    limited_by: str  # what the free bytes are, in words

    @property
    def usable_bytes(self) -> int:
        """With swap, on which a model crawls, but runs."""
        return self.free_bytes + self.swap_bytes


def bundle_need(manifest: Manifest, form: Form, cache_type: CacheType = "float32") -> Need:
    """What one form of a bundle takes."""
    model, tensors = manifest.model, manifest.tensors
    heads, head_dims = model.num_attention_heads, model.qk_nope_head_dim + model.v_head_dim
    portable = form == "portable"
    row_bytes = 4 * (model.kv_lora_rank + model.qk_rope_head_dim)
    return Need(
        form=form,
        model=model,
        mapped_bytes=mapped_weight_bytes(tensors, native=not portable),
        loading_bytes=max((info.size for info in tensors.values()), default=0) if portable else 0,
        copied_bytes=loaded_weight_bytes(tensors) if portable else 0,
        token_bytes=cache_token_bytes(
            model.kv_lora_rank, model.qk_rope_head_dim, model.num_hidden_layers, cache_type
        ),
        activation_bytes=4 * _activation_values(model, tensors),
        attention_weight_bytes=4 * heads * head_dims * model.kv_lora_rank,
        token_read_bytes=manifest.token_read_bytes,
        float_row_bytes=0 if cache_type == "float32" else row_bytes,
    )


def choose_context(
    where: str,
    need: Need,
    threads: int,
    *,
    max_context: int | None,
    max_memory: int | None,
    advice: str = "",
) -> int:
    """Tokens that contexts may hold, once it is sure that the bundle fits; warns if it is slow.

    Args:
        where: the bundle, for messages.
        need: what it takes.
        threads: threads that compute.
        max_context: tokens asked for, None for as many as the model can read.
        max_memory: see ``find_room``; without ``max_context``, contexts end where it is used up.
        advice: see ``check_fit``.

    Raises:
        InputError: a limit that is none.
        RuntimeFailure: it does not fit.
    """
    for name, limit in (("max_context", max_context), ("max_memory", max_memory)):
        if limit is not None and (type(limit) is not int or limit < 1):
            raise InputError(f"{name} must be a whole number from 1 on, found {limit!r}")
    model_limit = need.model.max_position_embeddings
    tokens = max_context or model_limit
    if tokens > model_limit:
        warnings.warn(
            f"{where}: max_context {tokens} is more than the model was made for "
            f"(max_position_embeddings {model_limit}); what it says beyond that may make no sense",
            stacklevel=3,
        )
    room = find_room(
        need,
        memory=read_memory(),
        resident=read_resident(),
        threads=threads,
        max_memory=max_memory,
    )
    if room is None:
        return tokens
    least = tokens if max_context else min(tokens, SMALLEST_CONTEXT)
    check_fit(where, need, room, least, advice)
    for text in fit_warnings(where, need, room, least):
        warnings.warn(text, stacklevel=2)
    if max_memory is not None and max_context is None:
        return min(tokens, need.longest_context(room.usable_bytes))
    return tokens


def native_advice(manifest: Manifest, form: Form, cache_type: CacheType = "float32") -> str:
    """What to say to those whose portable form does not fit, empty if nothing else would."""
    if form == "native" or manifest.weights == FLOAT32:
        return ""
    needed = bundle_need(manifest, "native", cache_type).anonymous_bytes(SMALLEST_CONTEXT)
    return (
        f"use native kernels, which need {format_bytes(needed)} for {SMALLEST_CONTEXT} tokens "
        "(shoal doctor says whether there are any)"
    )


def find_room(
    need: Need,
    *,
    memory: Memory | None,
    resident: ResidentMemory | None,
    threads: int,
    max_memory: int | None = None,
) -> Room | None:
    """What is left for a bundle, None where the system does not say.

    Args:
        need: what it takes; mapped files count where the address space is limited.
        memory: left to this process.
        resident: what this process takes already.
        threads: threads that compute.
        max_memory: bytes of memory this process may have for itself in all.
    """
    stacks = _SESSIONS * (threads - 1) * _STACK_BYTES
    mapped_bytes = need.mapped_bytes + need.loading_bytes + stacks
    return _least_room(memory, resident, mapped_bytes, max_memory)


def check_later_graph(
    what: str, num_layers: int, copied_bytes: int, max_memory: int | None, advice: str
) -> None:
    """Refuse a graph that is loaded while a bundle is in use, if it does not fit.

    Args:
        what: the graph, for the message.
        num_layers: attention layers in it.
        copied_bytes: weights that are repacked for it.
        max_memory: see ``find_room``.
        advice: how to do without it.

    Raises:
        RuntimeFailure: it does not fit.
    """
    needed = copied_bytes + _SESSION_BYTES + num_layers * _LAYER_BYTES
    room = _least_room(read_memory(), read_resident(), 0, max_memory)
    if room is not None and needed > room.usable_bytes:
        raise RuntimeFailure(
            f"{what}: loading it takes {format_bytes(needed)} of memory, found "
            f"{format_bytes(room.usable_bytes)} ({room.limited_by}); {advice}, free memory or "
            "raise the limit"
        )


def _least_room(
    memory: Memory | None,
    resident: ResidentMemory | None,
    mapped_bytes: int,
    max_memory: int | None,
) -> Room | None:
    rooms = []
    if memory is not None:
        rooms.append(
            Room(
                free_bytes=memory.available_bytes,
                swap_bytes=memory.swap_bytes,
                limited_by=memory.limited_by,
            )
        )
        if memory.address_space_bytes is not None:
            free = max(0, memory.address_space_bytes - mapped_bytes)
            where = "the limit of the address space (ulimit -v), mapped weights deducted"
            rooms.append(Room(free_bytes=free, swap_bytes=0, limited_by=where))
    if max_memory is not None:
        taken = resident.anonymous_bytes if resident is not None else 0
        free = max(0, max_memory - taken)
        where = f"left of max_memory {format_bytes(max_memory)}"
        where += f", of which this process has {format_bytes(taken)} already" if taken else ""
        rooms.append(Room(free_bytes=free, swap_bytes=0, limited_by=where))
    return min(rooms, key=lambda room: room.usable_bytes, default=None)


def check_fit(where: str, need: Need, room: Room, tokens: int, advice: str = "") -> None:
    """Refuse a bundle that does not fit with a context of a given length.

    Args:
        where: the bundle, for messages.
        need: what it takes.
        room: what is left.
        tokens: length of the context.
        advice: what can be done about it beside a shorter context or a smaller model.

    Raises:
        RuntimeFailure: it does not fit.
    """
    needed = need.anonymous_bytes(tokens)
    if needed <= room.usable_bytes:
        return
    longest = need.longest_context(room.usable_bytes)
    choices = [f"use a context of at most {longest} tokens (max_context)"] if longest else []
    saved = 0 if need.float_row_bytes or need.form == "portable" else need.cache_bytes(tokens) // 2
    if saved and needed - saved <= room.usable_bytes:
        choices.append("use a cache of type float16 or int8 (cache)")
    choices += [advice] if advice else []
    choices.append("free memory, raise the limit or take a smaller model")
    raise RuntimeFailure(
        f"{where}: {need.form} kernels and a context of {tokens} tokens need "
        f"{format_bytes(needed)} of memory ({_parts(need, tokens)}), found "
        f"{format_bytes(room.usable_bytes)} ({room.limited_by}); {', or '.join(choices)}"
    )


def fit_warnings(where: str, need: Need, room: Room, tokens: int) -> list[str]:
    """What makes a bundle that fits slow, each in one line."""
    left = room.free_bytes - need.anonymous_bytes(tokens)
    if left < 0:
        return [
            f"{where}: {format_bytes(-left)} of it will lie in swap, which is slow; free memory or "
            "use a shorter context"
        ]
    if need.mapped_bytes > left and room.limited_by in (FREE_MEMORY, GROUP_LIMIT):
        return [
            f"{where}: its weights ({format_bytes(need.mapped_bytes)}) are more than the memory "
            f"left for them ({format_bytes(left)}), so parts of them come from the disk again and "
            f"again, at worst {format_bytes(need.token_read_bytes)} for each token; expect it to "
            "be slow"
        ]
    return []


def _parts(need: Need, tokens: int) -> str:
    parts = {
        "copied weights": need.copied_bytes,
        "latent cache": need.cache_bytes(tokens),
        "scratch": need.scratch_bytes(tokens),
    }
    return ", ".join(f"{format_bytes(size)} {name}" for name, size in parts.items() if size)


def _activation_values(model: ModelInfo, tensors: Mapping[str, TensorInfo]) -> int:
    """Intermediate values of one token, from above: a layer's widest part and its queries."""
    dense = expert = shared = 0
    for name, info in tensors.items():
        if name.endswith(".mlp.shared_experts.gate_proj.weight"):
            shared = max(shared, info.shape[0])
        elif name.endswith(".mlp.gate_proj.weight"):
            dense = max(dense, info.shape[0])
        elif name.endswith(".mlp.experts.gate_up"):
            expert = max(expert, info.shape[1] // 2)
    hidden = model.hidden_size
    sparse = model.num_experts_per_tok * (hidden + 3 * expert) + 3 * shared
    queries = 2 * model.num_attention_heads * (model.kv_lora_rank + model.qk_rope_head_dim)
    return 8 * hidden + max(3 * dense, sparse) + queries
