"""Chat templates that mean harm are refused in time, whatever memory or time they ask for, and see nothing of this process."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hostile import survives

from fusechat.text import template_process, template_worker
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.template_process import TemplateFault

PLAIN = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ lipsum(n=10000000) }}", "{{ 'x' * 10**11 }}",
    "{% set all = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}{% set all.s = all.s ~ all.s %}{% endfor %}",
    "{{ ''.__class__.__mro__ }}", "{{ messages.__class__.__base__.__subclasses__() }}", "{{ cycler.__init__.__globals__.os.getcwd() }}",
    "{% import 'x' as y %}", "{% include '/etc/passwd' %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ 1 // 0 }}",
    "{{ '%0999999999d' % 1 }}", "{{ '{:>9999999999}'.format(1) }}", "{{ 'a'|center(10**11) }}", "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{% if 1 %}" * 2000, "{{ [1, 'a']|sort }}",
    "{{ strftime_now(5) }}", "{{ messages|tojson(indent=999999999) }}", "{{ namespace|tojson }}",
    "{{ 9**(9**9) }}", "{{ 10**(10**9) > 1 }}", "{{ (7**999999)|string }}", "{{ 'a'.ljust(10**11) }}", "{{ 'a'.zfill(10**11) }}",
    "{{ ('x' * 10**7).replace('x', 'y' * 1000) }}", "{{ ('x' * 10**6)|replace('', 'y' * 10**4) }}",
    "{{ ('\\t' * 10**6).expandtabs(10**6) }}",
    "{{ 'x'|indent(10**11) }}", "{{ (['x' * 10**6] * 10**5)|join }}", "{{ [0] * 10**11 }}", "{{ range(99999)|list * 10**6 }}",
    "{{ ('x ' * 10**7)|wordwrap(1) * 100 }}", "{{ '%*d' % (10**10, 1) }}", "{{ dict(a='x' * 10**9)|xmlattr }}", "{{ 'a' in 'x' * 10**11 }}",
    "{% set all = namespace(s=['x' * 999]) %}{% for i in range(60) %}{% set all.s = all.s + all.s %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'xxxxxxxxxx' }}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% for i in range(9) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(1) }}", "{{ raise_exception('no' * 10**6) }}",
    "{{ messages[0].update(role='x') }}", "{% do messages.append(1) %}", "{% extends 'x' %}", "{{ self.x.y.z() }}",
    "{{ '{0.__class__}'.format(1) + 1 }}",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TEMPLATES)))
def test_template_that_means_harm_is_refused_in_time(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(template_process, "MAX_SECONDS", 0.5)
    message = survives(lambda: load_tokenizer(str(tiny_models["llama"]), template=TEMPLATES[number] + PLAIN))
    assert "root:" not in message
    assert message or "__" in TEMPLATES[number]  # Jinja's sandbox shows nothing for a name that it hides


def test_template_sees_nothing_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRETSECRET")
    template_process.end()  # the next one begins now
    assert template_process.render("{{ x }}", {"x": "a"}) == "a"
    alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    (process,) = [one for one in alive if template_worker.__file__ in one.cmdline()]
    place = Path(f"/proc/{process.pid}")
    assert b"SECRET" not in (place / "environ").read_bytes()
    limits = {line[:26].strip(): line.split()[-3] for line in (place / "limits").read_text().splitlines()[1:]}
    assert int(limits["Max address space"]) == template_worker.MEMORY and limits["Max file size"] == "0"
    template_process.end()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'x' * 10**11 }}", "more than 1024 MiB of memory"),
        ("{{ 10**(10**9) > 1 }}", "more than 1 seconds"),
        ("{{ 'x' * (2**26 + 1) }}", "67,108,865 characters"),
        ("{{ raise_exception('not for me') }}", "not for me"),
    ],
)
def test_template_that_takes_too_much_says_what_and_the_next_one_is_rendered(
    monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr(template_process, "MAX_SECONDS", 1.0 if "seconds" in reason else 60.0)
    with pytest.raises(TemplateFault, match=reason):
        template_process.render(template, {})
    monkeypatch.setattr(template_process, "MAX_SECONDS", 60.0)
    assert template_process.render("{% if a %}{{ strftime_now('%d') }}{% endif %}", {"a": 1}, "2026-01-31") == "31"


def test_templates_are_rendered_by_several_threads_at_once() -> None:
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda number: template_process.render("{{ n }}" * 99, {"n": number}), range(80)))
    assert texts == [str(number) * 99 for number in range(80)]


def test_variables_of_any_length_reach_the_template() -> None:
    text = "\ud800é\n" * 1_000_000
    assert template_process.render("{{ text }}", {"text": text}) == text
