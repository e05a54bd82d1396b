"""Options as the library takes them: groups of them for ``open_bundle`` and ``Model.generate``."""

from __future__ import annotations

import argparse
from typing import Any


def machine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a verb that ``open_bundle`` takes."""
    return {
        "kernels": args.kernels,
        "threads": args.threads,
        "cache": args.cache,
        "max_context": args.max_context,
        "max_memory": args.max_memory,
    }


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``shoal run`` that ``Model.generate`` takes."""
    return {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "repetition_penalty": args.repetition_penalty,
        "logit_bias": dict(args.logit_bias),
        "logprobs": args.logprobs,
        "seed": args.seed,
        "stop": tuple(args.stop),
        "draft": args.draft,
    }
