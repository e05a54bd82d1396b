"""Tokenizers of strangers: each is refused in one line or works, in bounded time and memory."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.graphs.text import hostile_tokenizers
from tests.graphs.text.hostile_tokenizers import BAD, TEXTS, Json, content

from shoal.graphs.errors import BundleError, ShoalError
from shoal.graphs.text.library_tokenizer import LibraryTokenizer, library_faults

pytestmark = pytest.mark.dependencies

MEMORY = 512 << 20  # bytes of address space beyond what Python and its libraries have taken
SECONDS = 5  # of the processor for one file; a good one takes 0.01
WHERE = Path("bundle/tokenizer.json")


def open_tokenizer(file: Json | bytes) -> LibraryTokenizer:
    return LibraryTokenizer(content(file), WHERE, error=BundleError, advice="re-export it")


def use(file: Json | bytes) -> str | None:
    """Load a tokenizer and use it. Returns why it was refused, if it was."""
    try:
        tokenizer = open_tokenizer(file)
        for text in TEXTS:
            ids = tokenizer.encode(text).ids
            for skip in (True, False):
                tokenizer.decode(ids, skip_special_tokens=skip)
        tokenizer.decode(range(300))
    except ShoalError as error:
        return str(error)
    return None


def use_all(group: str) -> None:
    """Use the files of a group; a file that takes too long or too much ends the process."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    files: Any = getattr(hostile_tokenizers, group)
    for name, file in files.items() if isinstance(files, dict) else files():
        print(json.dumps(name), end=" ", flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        print(json.dumps(use(file)), flush=True)


def outcomes(group: str) -> dict[str, str | None]:
    """Why each file of a group was refused, None for those that work."""
    code = f"from {__name__} import use_all; use_all({group!r})"
    if "." not in __name__:
        code = code.replace(__name__, f"tests.graphs.text.{__name__}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-500:])
    decode = json.JSONDecoder().raw_decode
    found = {}
    for line in lines:
        name, end = decode(line)
        found[name] = json.loads(line[end:])
    return found


def assert_is_one_line_about_the_file(message: str) -> None:
    assert message.startswith(f"{WHERE}: ")
    assert message.endswith("; re-export it")
    assert "\n" not in message
    assert len(message) < 500


def test_a_bad_file_is_refused_in_one_line_that_names_it() -> None:
    found = outcomes("BAD")
    assert found.keys() == BAD.keys()
    assert [name for name, message in found.items() if message is None] == []
    for message in found.values():
        assert_is_one_line_about_the_file(str(message))


def test_a_good_file_with_any_known_part_works() -> None:
    found = outcomes("good")
    assert len(found) > 40
    assert {name: message for name, message in found.items() if message is not None} == {}


def test_a_file_with_any_wrong_field_is_refused_in_one_line_or_works() -> None:
    found = outcomes("mutants")
    refused = [message for message in found.values() if message is not None]
    assert len(refused) > 1500
    for message in refused:
        assert_is_one_line_about_the_file(message)


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    good = json.dumps(hostile_tokenizers.tokenizer())[1:]
    bad = json.dumps(hostile_tokenizers.replace("l", "x" * 500))
    tokenizer = open_tokenizer(f'{{"normalizer": {bad}, {good}'.encode())
    assert tokenizer.decode(tokenizer.encode("hello").ids) == "hello"


def test_a_byte_order_mark_is_no_part_of_a_file() -> None:
    assert use(b"\xef\xbb\xbf" + content(hostile_tokenizers.tokenizer())) is None


def test_ctrl_c_and_want_of_memory_are_not_taken_for_faults_of_the_file() -> None:
    for error in (KeyboardInterrupt, MemoryError, SystemExit):
        with pytest.raises(error), library_faults(WHERE, BundleError, "re-export it"):
            raise error


def test_a_regular_expression_that_backtracks_for_long_is_given_up() -> None:
    split = hostile_tokenizers.PRE_TOKENIZERS["Split"] | {"pattern": {"Regex": "(x+x+)+y"}}
    tokenizer = open_tokenizer(hostile_tokenizers.tokenizer(pre_tokenizer=split))
    with pytest.raises(BundleError, match="retry-limit-in-match over"):
        tokenizer.encode("x" * 40)
