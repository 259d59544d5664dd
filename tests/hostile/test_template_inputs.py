"""Chat templates that mean harm are refused in time, whatever memory or time they ask for, and see nothing of this process."""

from pathlib import Path

import pytest
from hostile import survives

from fusechat.text import template_process
from fusechat.text.chat_template import load_tokenizer

PLAIN = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ lipsum(n=10000000) }}", "{{ 'x' * 10**11 }}",
    "{% set all = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}{% set all.s = all.s ~ all.s %}{% endfor %}",
    "{{ ''.__class__.__mro__ }}", "{{ messages.__class__.__base__.__subclasses__() }}", "{{ cycler.__init__.__globals__.os.getcwd() }}",
    "{% import 'x' as y %}", "{% include '/etc/passwd' %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ 1 // 0 }}",
    "{{ '%0999999999d' % 1 }}", "{{ '{:>9999999999}'.format(1) }}", "{{ 'a'|center(10**11) }}", "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{% if 1 %}" * 2000, "{{ [1, 'a']|sort }}",
    "{{ strftime_now(5) }}", "{{ messages|tojson(indent=999999999) }}", "{{ namespace|tojson }}",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TEMPLATES)))
def test_template_that_means_harm_is_refused_in_time(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(template_process, "MAX_SECONDS", 0.5)
    message = survives(lambda: load_tokenizer(str(tiny_models["llama"]), template=TEMPLATES[number] + PLAIN))
    assert "root:" not in message
    assert message or "__" in TEMPLATES[number]  # Jinja's sandbox shows nothing for a name that it hides
