"""A process of its own that renders chat templates, for `template_process`: one JSON request a line in, one answer a line out.

A chat template is foreign code. Here it has the memory that `MEMORY` gives, no environment, and no file that it could write;
whoever asked ends the process if an answer takes too long. Jinja is set up as transformers sets it up (trimmed blocks,
`generation`, `break`, `tojson` without HTML's escapes). Imports nothing of this project, so that it starts in a moment.
"""

import datetime
import json
import resource
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**30
"""Bytes of address space; a real template takes some MiB beyond what it writes."""
LARGEST_TEXT = 2**26
"""Characters that a template may write."""


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant says; here it writes it and no more."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> Node:
        """The block as a call that writes its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("write"), [], [], body).set_lineno(line)

    def write(self, caller: Callable[[], str]) -> str:
        """The body."""
        return caller()


def refuse(message: str) -> None:
    """A template's own refusal."""
    raise jinja2.TemplateError(message)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson`."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(text: str) -> jinja2.Template:
    """A template ready to render."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(text)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The text, or why there is none.

    Args:
        request: `template`, `variables`, and `date` (YYYY-MM-DD; "" for the clock's).
    """
    variables = request["variables"]
    if request["date"]:
        variables["strftime_now"] = datetime.datetime.fromisoformat(request["date"]).strftime
    try:
        text = compiled(request["template"]).render(**variables)
        if len(text) > LARGEST_TEXT:
            return {"error": f"it writes {len(text):,} characters, expected at most {LARGEST_TEXT:,}"}
        return {"text": text}
    except jinja2.TemplateSyntaxError as error:
        return {"line": error.lineno, "error": error.message}
    except MemoryError:
        return {"error": f"it takes more than {MEMORY // 2**20} MiB of memory"}
    except Exception as error:  # a template may raise whatever Python does
        return {"error": str(error)[:300] or type(error).__name__}


def main() -> None:
    """Answer until nobody asks."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    print(flush=True)  # ready
    for line in sys.stdin.buffer:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
