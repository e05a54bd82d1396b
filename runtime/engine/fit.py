"""Does a bundle fit into memory here, and how long may a context be: need against what is left."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from shoal.graphs.cache_types import CacheType
from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.graphs.manifest import Manifest
from shoal.runtime.engine.need import Form, Need, bundle_need, session_bytes
from shoal.runtime.machine.memory import (
    FREE_MEMORY,
    GROUP_LIMIT,
    Memory,
    ResidentMemory,
    read_memory,
    read_resident,
)
from shoal.runtime.units import format_bytes

SMALLEST_CONTEXT = 512
"""A bundle is opened when at least this many tokens fit, unless fewer are asked for."""

_STACK_BYTES = 8 << 20  # address space of a thread
_SESSIONS = 2  # decoder and head, each with a pool of threads


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
    for message in fit_warnings(where, need, room, least):
        warnings.warn(message, stacklevel=2)
    if max_memory is not None and max_context is None:
        return min(tokens, need.longest_context(room.usable_bytes))
    return tokens


def native_advice(manifest: Manifest, form: Form, cache_type: CacheType = "float32") -> str:
    """What to say to those whose portable form does not fit, empty if nothing else would."""
    if form == "native" or not manifest.is_quantized:
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
    needed = copied_bytes + session_bytes(num_layers)
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
