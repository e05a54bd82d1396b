"""What an evaluation takes where nothing else is asked for; imports nothing."""

from __future__ import annotations

DEFAULT_WINDOW = 512
"""Tokens read at once."""
