"""The tokenizers library behind one class: whatever it does with a file is one line that names it.

The library is written in Rust. It raises plain exceptions, and panics, which are no ``Exception``;
over some files it ends the process or takes memory without bound, so ``read_tokenizer_file`` looks
at them first. Its regular expressions have no bound on time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.graphs.errors import InputError, ShoalError
from shoal.graphs.input_files import LONGEST_TEXT
from shoal.graphs.panics import is_panic
from shoal.graphs.text.fields import FieldError, one_line
from shoal.graphs.text.tokenizer_file import read_tokenizer_file

if TYPE_CHECKING:
    from tokenizers import Encoding

_USUAL_GROWTH = 16
_FEWEST_BYTES = 64 << 20  # of what a text becomes before it is cut into tokens
_QUICK_BYTES = 1 << 16  # a text of as many is encoded in a blink


class LibraryTokenizer:
    """A tokenizer.json in the tokenizers library.

    Args:
        content: of the file.
        where: the file, for messages.
        error: what to raise about it.
        advice: what to do about it, for messages.

    Attributes:
        special_ids: Ids of special tokens by their texts.

    Raises:
        ShoalError: the library cannot read the file, or should not; of type ``error``.
    """

    def __init__(
        self, content: bytes, where: Path, *, error: type[ShoalError], advice: str
    ) -> None:
        from tokenizers import Tokenizer  # 10 ms that ids alone do not need

        self._where, self._error, self._advice = where, error, advice
        try:
            file = read_tokenizer_file(content)
        except FieldError as fault:
            raise error(f"{where}: {fault}; {advice}") from fault
        except (ValueError, RecursionError) as fault:
            raise error(f"{where}: expected JSON, found: {fault}; {advice}") from fault
        with library_faults(where, error, advice):
            self._library = Tokenizer.from_str(file.source)
            # Both belong to training batches and would cut or lengthen a prompt.
            self._library.no_truncation()
            self._library.no_padding()
        self.special_ids = file.special
        self._growth, self._text_per_token = file.growth, file.text_per_token
        self._added, self._token_bytes = file.added, file.token_bytes
        self._check_added(file.added)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> Encoding:
        """Encode a text.

        Args:
            text: any text.
            add_special_tokens: whether to add the tokens that begin and end a text.
            max_tokens: refuse a text that is sure to have more, before it is encoded.

        Raises:
            InputError: ``text`` is no text, too long, or UTF-8 cannot express it.
            ShoalError: the tokenizer fails on it; of the type for errors in the file.
        """
        self._check_text(text, max_tokens)
        with library_faults(self._where, self._error, self._advice):
            return self._library.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ShoalError: the tokenizer fails on them; of the type for errors in the file.
        """
        with library_faults(self._where, self._error, self._advice):
            return self._library.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """Id of the token that is written exactly like this, None if there is none."""
        with library_faults(self._where, self._error, self._advice):
            return self._library.token_to_id(token)

    def token_bytes(self, id_: int) -> bytes:
        """Bytes of a token alone, which may be half a character; none for an id without a token."""
        with library_faults(self._where, self._error, self._advice):
            token = self._library.id_to_token(id_)
        if token is None:
            return b""
        return token.encode() if token in self._added else self._token_bytes.of(token)

    def _check_added(self, added: dict[str, int]) -> None:
        """Refuse a file whose ids are not those that the library gives."""
        for text, id_ in added.items():
            found = self.token_id(text)
            if found != id_:
                raise self._error(
                    f"{self._where}: added_tokens: expected {text[:80]!a} to be token {id_}, found "
                    f"{found} by the vocabulary; {self._advice}"
                )

    def _check_text(self, text: str, max_tokens: int | None) -> None:
        if not isinstance(text, str):
            raise InputError(f"encode expects text, found {type(text).__name__}")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InputError(
                "text: expected valid Unicode, found half of a surrogate pair; remove it"
            ) from error
        if len(text) > LONGEST_TEXT:
            raise InputError(
                f"text: expected at most {LONGEST_TEXT} characters, found {len(text)}; encode it "
                "in parts"
            )
        if max_tokens is not None and self._text_per_token is not None:
            most = self._text_per_token * max_tokens
            if size > max(most, _QUICK_BYTES):
                raise InputError(
                    f"text: expected at most {most} bytes, the most that {max_tokens} tokens can "
                    f"hold, found {size}; shorten it or give it more context"
                )
        if size * self._growth > max(_USUAL_GROWTH * size, _FEWEST_BYTES):
            raise InputError(
                f"text: expected at most {_FEWEST_BYTES // self._growth} bytes, because "
                f"{self._where} may make it {self._growth} times as long, found {size}; shorten it"
            )


@contextmanager
def library_faults(where: Path, error: type[ShoalError], advice: str) -> Iterator[None]:
    """Turn whatever the tokenizers library raises into an error of one line.

    Args:
        where: the file that it is about.
        error: what to raise.
        advice: what to do about it.
    """
    try:
        yield
    except (ShoalError, MemoryError):
        raise
    except BaseException as fault:
        if not isinstance(fault, Exception) and not is_panic(fault):
            raise  # Ctrl-C
        reason = one_line(str(fault)) or type(fault).__name__
        raise error(
            f"{where}: the tokenizers library cannot use it ({reason}); {advice}"
        ) from fault
