"""Text from anywhere on a terminal: what would steer the terminal is shown instead.

A manifest, a config or a model may hold escape sequences that write to the clipboard, rename the
window or hide what follows, and marks that reverse the order in which text is read.
"""

from __future__ import annotations

import re
from typing import TextIO

# C0 but tab and line feed, DEL, C1; embeddings, overrides and isolates of direction (UAX 9).
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text with its control characters as a Python literal would have them."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def visible_on_terminals(text: str, stream: TextIO) -> str:
    """Text as it may be written to a stream: unchanged unless that is a terminal."""
    return visible(text) if stream.isatty() else text
