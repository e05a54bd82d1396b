"""JSON that some readers take and others do not, or read otherwise."""

from __future__ import annotations

import pytest

from shoal.graphs.strict_json import strict_json


def test_json_is_read_from_text_and_utf_8():
    assert strict_json('{"a": [1, "\u00e4"]}') == {"a": [1, "\u00e4"]}
    assert strict_json('{"a": "\u00e4"}'.encode()) == {"a": "\u00e4"}
    assert strict_json(r'["\ud83d\ude00", "\\ud83d"]') == ["\U0001f600", r"\ud83d"]
    assert strict_json("[1e-400, 1e308]") == [0.0, 1e308]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key c twice in one object"),
        ("[NaN]", "NaN, which is no JSON number"),
        ("[-Infinity]", "-Infinity, which is no JSON number"),
        ("[1]".encode("utf-16"), "decode"),
        (r'["\ud83d"]', "surrogates not allowed"),
        (r'{"\ude00": 1}', "surrogates not allowed"),
        (b"\xef\xbb\xbf[1]", "BOM"),
        ("[" + "9" * 5000 + "]", "limit"),
        ("[-1e400]", "-1e400, which is beyond any float64"),
    ],
)
def test_what_not_every_reader_takes_is_refused(content, expected):
    with pytest.raises(ValueError, match=expected):
        strict_json(content)
