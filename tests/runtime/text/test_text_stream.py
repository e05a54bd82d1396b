from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.graphs.errors import InputError
from shoal.runtime.text.text_stream import StopFilter, TextStream
from shoal.runtime.text.tokenizer import Tokenizer

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"
TOKENIZER = Tokenizer(TINY / "tokenizer.json")


def stream(ids):
    text_stream = TextStream(TOKENIZER)
    return [text_stream.push(token) for token in ids], text_stream.finish()


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40) | st.sampled_from(["déjà vu 🐟🐠 深い海", "👨‍👩‍👧", "\ufffd!"]))
def test_pieces_add_up_to_the_text_and_hold_no_broken_characters(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces, rest = stream(ids)
    assert "".join(pieces) + rest == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)
        assert rest == ""


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 4095), max_size=60))
def test_pieces_of_any_tokens_add_up_to_their_text(ids):
    pieces, rest = stream(ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids)


@settings(max_examples=100, deadline=None)
@given(
    ids=st.lists(st.sampled_from(TOKENIZER.encode("🐟é深", add_special_tokens=False)), max_size=40)
)
def test_bytes_in_any_order_add_up_to_their_text(ids):
    pieces, rest = stream(ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids)


def test_an_incomplete_character_comes_out_only_at_the_end():
    ids = TOKENIZER.encode("a🐟", add_special_tokens=False)
    assert len(ids) > 2, "the test needs a character of several tokens"
    pieces, rest = stream(ids[:-1])
    assert "".join(pieces) == "a"
    assert rest == "\ufffd"


def slow_stop(text, stops):
    """The shown text by the definition: cut at the stop string that is complete first."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_the_same_however_the_text_is_split(pieces, stops):
    stop_filter = StopFilter(stops)
    shown = ""
    for piece in pieces:
        shown += stop_filter.push(piece)
        assert slow_stop("".join(pieces), stops)[0].startswith(shown)
    shown += stop_filter.finish()
    assert (shown, stop_filter.stopped) == slow_stop("".join(pieces), stops)


def test_text_that_cannot_become_a_stop_string_is_not_held():
    stop_filter = StopFilter(["\n\nUser:"])
    assert stop_filter.push("one\n") == "one"
    assert stop_filter.push("two") == "\ntwo"


@pytest.mark.parametrize("wrong", ["text", [""], [1]])
def test_stop_strings_must_be_texts(wrong):
    with pytest.raises(InputError, match="stop must be a list of texts"):
        StopFilter(wrong)
