"""Opening a bundle: what it needs and what this machine has, compared before anything is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from shoal.graphs.cache_types import CACHE_TYPES, CacheType
from shoal.graphs.errors import InputError, RuntimeFailure
from shoal.runtime.bundle import Bundle
from shoal.runtime.engine.fit import choose_context, native_advice
from shoal.runtime.engine.need import bundle_need
from shoal.runtime.engine.session import Kernels, choose_settings
from shoal.runtime.model import Model


def open_bundle(
    path: str | Path,
    *,
    kernels: Kernels = "auto",
    threads: int | None = None,
    cache: CacheType = "float32",
    max_context: int | None = None,
    max_memory: int | None = None,
) -> Model:
    """Open a bundle for running.

    Args:
        path: the bundle folder.
        kernels: "native", "portable", or "auto" for native kernels where they are installed.
        threads: threads that compute; None for one per big core.
        cache: type of the latent cache: "float32", "float16" or "int8".
        max_context: tokens a context may hold; None for max_position_embeddings. More are
            allowed, with a warning: the model has seen no such positions in training.
        max_memory: bytes this process may allocate, beside the mapped weights. Without
            ``max_context`` it limits the tokens a context may hold, for one context.

    Raises:
        BundleError: the bundle is damaged, incomplete or too new, or has no graphs for this type
            of cache.
        InputError: an option has an unknown value.
        RuntimeFailure: there is not enough memory, which is found before anything is loaded, or
            there are no native kernels.
    """
    settings = choose_settings(kernels, threads)
    if cache not in CACHE_TYPES:
        raise InputError(f"cache must be {', '.join(CACHE_TYPES)}, found {cache!r}")
    bundle = Bundle.open(path)
    if not bundle.manifest.is_quantized:  # no native kernel is offered for its ops
        if kernels == "native":
            raise RuntimeFailure(
                f"{path}: native kernels need int8 weights, found fp32; use kernels auto or "
                "portable, or export with --weights int8"
            )
        settings = dataclasses.replace(settings, kernels="portable", library=None)
    need = bundle_need(bundle.manifest, settings.kernels, cache)
    tokens = choose_context(
        str(path),
        need,
        settings.threads,
        max_context=max_context,
        max_memory=max_memory,
        advice=native_advice(bundle.manifest, settings.kernels, cache),
    )
    return Model(bundle, settings, cache, tokens, max_memory)
