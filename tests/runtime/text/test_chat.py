from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import jinja2
import pytest
from tests.runtime.text.chat_templates import CONVERSATIONS as TALKS
from tests.runtime.text.chat_templates import TEMPLATES

from shoal.graphs.errors import BundleError, InputError
from shoal.runtime.text.chat import ChatTemplate
from shoal.runtime.text.tokenizer import find_template, special_tokens

pytestmark = pytest.mark.dependencies

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny-v3"

V3_STYLE = """
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif -%}
{%- set ns = namespace(system='', is_first=true) -%}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- if ns.is_first %}{% set ns.system = message['content'] %}{% set ns.is_first = false %}
        {%- else %}{% set ns.system = ns.system + '\\n\\n' + message['content'] %}{%- endif %}
    {%- endif %}
{%- endfor %}{{ bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}{{ '<|assistant|>' + message['content'] | trim + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
TRIMMED = """
{% for message in messages %}
  {% if loop.index0 == 5 %}
    {% break %}
  {% endif %}
  {{ message.role | upper }}: {{ message.content }}
  {# a comment on a line of its own #}
{% endfor %}
end
"""
JSON = (
    "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|"
    "{{ tools is none }}{{ documents is none }}{{ unk_token }}{{ pad_token }}"
)
REFUSING = """{% if messages[0].role != 'user' %}{{ raise_exception('must start with user') }}
{% endif %}{{ strftime_now('%Y') }} {{ messages | length }}"""

CONVERSATIONS = [
    [{"role": "user", "content": "Hello <b>&</b> 'you' - déjà vu"}],
    [
        {"role": "user", "content": "  spaces  \n"},
        {"role": "assistant", "content": " answer \n"},
        {"role": "system", "content": "late rule"},
        {"role": "user", "content": ""},
    ],
]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokens():
    return special_tokens(json.loads((TINY / "tokenizer_config.json").read_text()))


@pytest.mark.parametrize("template", [V3_STYLE, TRIMMED, JSON, REFUSING])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_equals_transformers(oracle, tokens, template, messages, prompt):
    expected = oracle.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    rendered = ChatTemplate(template, tokens, "t").render(messages, add_generation_prompt=prompt)
    assert rendered == expected


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("prompt", [True, False])
def test_the_families_templates_render_as_in_transformers(oracle, tokens, family, talk, prompt):
    template, messages = TEMPLATES[family], TALKS[talk]
    ours = outcome(
        lambda: ChatTemplate(template, tokens, "t").render(messages, add_generation_prompt=prompt)
    )
    theirs = outcome(
        lambda: oracle.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
    )
    assert ours == theirs
    assert (ours is None) == (family == "youtu" and talk in ("tool results", "after tools"))


def outcome(render):
    """What is rendered, None if the template refuses the conversation."""
    try:
        return render()
    except (InputError, jinja2.TemplateError):
        return None


def test_a_template_that_refuses_says_why():
    template = ChatTemplate(REFUSING, {}, "t")
    with pytest.raises(InputError, match=r"refuses them \(must start with user\)"):
        template.render([{"role": "system", "content": "x"}])
    assert template.render([{"role": "user"}]).startswith(str(datetime.date.today().year))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox_or_crash(source):
    with pytest.raises(InputError, match="chat template refuses"):
        ChatTemplate(source, {}, "t").render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% unknown %}", "{{ x | no_filter }}"])
def test_a_source_that_is_no_template_is_a_damaged_bundle(source):
    with pytest.raises(BundleError, match="cannot be read"):
        ChatTemplate(source, {}, "t")


@pytest.mark.parametrize("wrong", ["text", [], [1], [{"content": "x"}], {"role": "user"}, None])
def test_messages_must_be_a_list_with_roles(wrong):
    with pytest.raises(InputError, match="message"):
        ChatTemplate("x", {}, "t").render(wrong)


def test_templates_are_found_where_checkpoints_keep_them(tmp_path):
    file = tmp_path / "chat_template.jinja"
    file.write_text("file")
    config = {"chat_template": "config"}
    assert find_template(file, config) == ("file", str(file))
    found = find_template(None, config)
    assert found is not None
    assert found[0] == "config"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    found = find_template(None, {"chat_template": named})
    assert found is not None
    assert found[0] == "d"
    assert find_template(None, {}) is None
    with pytest.raises(BundleError, match="one named default among 1"):
        find_template(None, {"chat_template": named[:1]})
    with pytest.raises(BundleError, match="expected a text or a list"):
        find_template(None, {"chat_template": 3})
    file.write_bytes(b"\xff")
    with pytest.raises(BundleError, match="expected text"):
        find_template(file, config)
