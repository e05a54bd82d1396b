"""What files and settings say, as bounded, printable parts of one line."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_LETTERS = 80
_MOST_PROBLEMS = 100
_LONGEST_PROBLEM = 400


def shortened(text: str, most: int = _MOST_LETTERS) -> str:
    """Text from anywhere, in printable ASCII, cut when it has more than ``most`` letters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[: most + 20])
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(problems: Sequence[str]) -> str:
    """All problems in a line, with their number if there are several; beyond a hundred only that.

    Args:
        problems: one clause each, of which a long one is cut.
    """
    shown = [_cut(problem) for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    count = "" if len(problems) == 1 else f"{len(problems)} problems: "
    return count + "; ".join(shown)


def _cut(problem: str) -> str:
    return problem if len(problem) <= _LONGEST_PROBLEM else f"{problem[: _LONGEST_PROBLEM - 3]}..."
