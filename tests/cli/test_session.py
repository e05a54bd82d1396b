"""shoal run --session on the trained tiny model: each call is a process of its own for the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.runtime import open_bundle
from shoal.runtime.commands.cli import main
from shoal.runtime.text.text_files import TextFiles

PROMPT = "Once upon a time there was a fisherman who lived with his wife in a small house by the "


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat template; the trained tiny model is a base model and has none."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(TextFiles, "_template_source", (source, "template"))


@pytest.fixture
def run(int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(prompt: str, *options: str) -> dict[str, Any]:
        argv = ["run", str(int8_bundle), "--prompt", prompt, "--max-new-tokens", "6", "--json"]
        assert main([*argv, "--threads", "1", *options]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def test_plain_text_goes_on_where_it_ended(run: Any, int8_bundle: Path, tmp_path: Path) -> None:
    session = ["--session", str(tmp_path / "a.session"), "--raw"]
    first = run(PROMPT, *session)
    second = run(" And then", *session)
    model = open_bundle(int8_bundle, threads=1)
    ids = model.encode(PROMPT)
    context = model.new_context()
    expected = list(model.generate(ids, max_new_tokens=6, context=context))
    assert first["token_ids"] == expected
    following = [*ids, *expected, *model.encode(" And then", add_special_tokens=False)]
    generation = model.generate(following, max_new_tokens=6, context=context)
    assert second["token_ids"] == list(generation)
    assert second["prompt_tokens"] == len(following)


@pytest.mark.usefixtures("template")
def test_a_chat_goes_on_where_it_ended(run: Any, int8_bundle: Path, tmp_path: Path) -> None:
    model = open_bundle(int8_bundle, threads=1)
    session = ["--session", str(tmp_path / "a.session"), "--chat"]
    first = run("Hello", *session, "--system", "Be brief.", "--draft", "auto")
    second = run("And you?", *session)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "And you?"},
    ]
    assert second["prompt_tokens"] == len(model.chat_ids(messages))
    assert first["drafts"] is not None
    assert second["drafts"] is None


@pytest.mark.usefixtures("template")
def test_what_does_not_fit_the_session_is_one_line(
    run: Any,
    int8_bundle: Path,
    fp32_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.session"
    run("Hello", "--session", str(path), "--chat")
    model = open_bundle(int8_bundle, threads=1)
    model.new_context().save(tmp_path / "other")
    for bundle, options, expected in (
        (int8_bundle, ["--session", str(path), "--raw"], "found a chat (--chat)"),
        (int8_bundle, ["--session", str(path), "--system", "x"], "--system is for a new session"),
        (fp32_bundle, ["--session", str(path)], "it belongs to another bundle"),
        (int8_bundle, ["--session", str(tmp_path / "other")], "found another context"),
        (int8_bundle, ["--session", str(tmp_path)], "Is a directory"),
    ):
        assert main(["run", str(bundle), "--prompt", "x", "--threads", "1", *options]) == 1
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1
