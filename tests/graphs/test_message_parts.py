"""Parts of messages that come from files are printable, and short whatever is in the files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.graphs.message_parts import listed, shortened


@given(text=st.text(), most=st.integers(8, 100))
def test_any_text_becomes_a_short_printable_one(text, most):
    found = shortened(text, most)
    assert found.isprintable()
    assert found.isascii()
    assert len(found) <= most


def test_short_text_stays_and_long_text_is_seen_to_be_cut():
    assert shortened("hidden_size") == "hidden_size"
    assert shortened("x" * 81) == "x" * 77 + "..."


def test_problems_are_counted_and_neither_they_nor_their_number_make_a_line_long():
    assert listed(["one"]) == "one"
    assert listed(["one", "two"]) == "2 problems: one; two"
    found = listed(["x" * 10_000] * 10_000)
    assert found.startswith("10000 problems: xxx")
    assert found.endswith("...; and 9900 more")
    assert len(found) < 50_000
