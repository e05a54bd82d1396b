"""Panics: how libraries written in Rust give up, which Python does not count as exceptions."""

from __future__ import annotations


def is_panic(error: BaseException) -> bool:
    """Whether it is a panic: no ``Exception``, though it ends no more than one call."""
    return type(error).__module__ == "pyo3_runtime"
