"""Take typed values out of a JSON object and collect what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.graphs.message_parts import shortened

MOST_INTEGER = (1 << 31) - 1
"""Above any size, count or id of a model; what is computed from sizes stays a number of 64 bits."""
_MOST_NUMBER = 1e12


class ConfigReader:
    """Takes keys out of a JSON object and collects what is wrong with them.

    Args:
        raw: the object.
        defaults: values of absent keys; one that is not listed is null.
        prefix: what comes before a key's name in messages.

    Attributes:
        problems: One clause for each key that is of a wrong type, unsupported or unknown.
    """

    def __init__(
        self, raw: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
    ) -> None:
        self._left = dict(raw)
        self._defaults = defaults
        self._prefix = prefix
        self.problems: list[str] = []

    def take(self, key: str) -> Any:
        """The value of ``key`` as it is, or its default when it is absent."""
        return self._left.pop(key, self._defaults.get(key))

    def refuse(self, key: str, expected: str, found: Any) -> None:
        """Note that ``key`` holds ``found`` where ``expected`` is needed."""
        self.problems.append(
            f"{self._prefix}{key}: expected {expected}, found {shortened(repr(found))}"
        )

    def merge_alias(self, alias: str, key: str) -> None:
        """Treat ``alias`` as another spelling of ``key``."""
        if alias in self._left:
            value = self._left.pop(alias)
            if self._left.setdefault(key, value) != value:
                other = shortened(repr(self._left[key]))
                self.refuse(alias, f"the same as {key} ({other})", value)

    def integer(self, key: str, *, null: bool = False) -> int | None:
        """A whole number in +-MOST_INTEGER; None is accepted when ``null`` is."""
        value = self.take(key)
        is_right = is_integer(value) or (value is None and null)
        if is_right and abs(value or 0) <= MOST_INTEGER:
            return value  # type: ignore[no-any-return]
        self.refuse(key, f"at most {MOST_INTEGER}" if is_right else "a whole number", value)
        default = self._defaults.get(key)
        return 1 if default is None else default

    def number(self, key: str, *, null: bool = False) -> float | None:
        """A finite number of a size that models have; None is accepted when ``null`` is."""
        value = self.take(key)
        if value is None and null:
            return None
        if is_number(value):
            return float(value)
        is_right = is_integer(value) or isinstance(value, float)
        finite = f"a finite number up to {_MOST_NUMBER:.0e}"
        self.refuse(key, finite if is_right else "a number", value)
        default = self._defaults.get(key)
        return 2.0 if default is None else default

    def flag(self, key: str) -> bool:
        """A truth value."""
        value = self.take(key)
        if isinstance(value, bool):
            return value
        self.refuse(key, "true or false", value)
        return bool(self._defaults.get(key))

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of ``allowed``; the first when the key is absent or null."""
        value = self.take(key)
        if value is None:
            return allowed[0]
        if value not in allowed:
            self.refuse(key, " or ".join(map(repr, allowed)), value)
            return allowed[0]
        return str(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id, a list of them, or null for none."""
        value = self.take(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if all(is_integer(token) and 0 <= token <= MOST_INTEGER for token in ids):
            return tuple(ids)
        self.refuse(key, "a token id or a list of them", value)
        return ()

    def expect(self, key: str, only: Any) -> None:
        """Refuse every value of ``key`` but ``only`` and null."""
        value = self._left.pop(key, None)
        if value is not None and value != only:
            self.refuse(key, repr(only), value)

    def refuse_the_rest(self, harmless: frozenset[str] = frozenset()) -> None:
        """Refuse the keys that were not taken, unless harmless or null."""
        for key in sorted(self._left):
            if key not in harmless and self._left[key] is not None:
                self.problems.append(
                    f"{self._prefix}{shortened(key)}: unknown key, which may change the model's "
                    "numbers; remove it if it does not"
                )


def is_integer(value: Any) -> bool:
    """Whether ``value`` is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number that float32 values can be multiplied by."""
    return (is_integer(value) or isinstance(value, float)) and abs(value) <= _MOST_NUMBER
