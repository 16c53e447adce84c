"""Renders chat templates in a process of its own, so that a hostile one can do no harm.

A template is a program that came with the model. Jinja's sandbox keeps it from attributes and from the
system, but not from filling the memory or running for ever; so it runs here, where the address space and
the processor time are limited, and where the parent can end it.

The file is started by its path, isolated from the environment, and imports nothing of edgemoe. It reads lines, each a
JSON object `{"path", "cpu_s", "template", "variables", "messages"}` (`path` is the import path to use, `cpu_s` how much
processor time it may take), and writes a line for each, `{"text"}` or `{"error", "message"}`. Without `messages` the
template is not run, and the answer is `{"reads"}`: the names of the variables that it reads.
"""

from __future__ import annotations

import functools
import json
import math
import signal
import sys
from typing import Any

MEMORY_LIMIT_BYTES = 512 << 20
OUTPUT_LIMIT_CHARACTERS = 16 << 20


def limit_resources(cpu_s: float) -> None:
    """Limits the address space, and the processor time from now on, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: only the parent's timeout applies
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_limit_s = math.ceil(used.ru_utime + used.ru_stime + cpu_s)
    for kind, limit in ((resource.RLIMIT_AS, MEMORY_LIMIT_BYTES), (resource.RLIMIT_CPU, cpu_limit_s)):
        hard = resource.getrlimit(kind)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):  # macOS refuses RLIMIT_AS
            continue


@functools.cache
def build_environment() -> Any:
    """The environment in which transformers renders templates: its options, functions and tags.

    Lists and objects that a template makes itself may be changed by it (Kimi's queue up the ids of calls), which
    transformers forbids; those that it is given may not.
    """
    from datetime import datetime

    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks the assistant's text for training; here its body is simply printed."""

        tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        given: frozenset[int] = frozenset()
        """The `id` of everything in the variables of this rendering, which live as long as it does."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if id(obj) in self.given:
                return super().is_safe_attribute(obj, attr, value)
            return SandboxedEnvironment.is_safe_attribute(self, obj, attr, value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
                separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


@functools.lru_cache(maxsize=1)
def compiled(source: str) -> Any:
    """The template of this text; a conversation renders the same one again and again."""
    return build_environment().from_string(source)


def identities(value: Any) -> set[int]:
    """The `id` of every list and object in a JSON value."""
    found, left = set(), [value]
    while left:
        one = left.pop()
        if isinstance(one, (dict, list)):
            found.add(id(one))
            left += one.values() if isinstance(one, dict) else one
    return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request; whatever the template does becomes an error message."""
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.meta import find_undeclared_variables

    try:
        if "messages" not in request:
            return {"reads": sorted(find_undeclared_variables(build_environment().parse(request["template"])))}
        pieces, characters = [], 0
        variables = {**request["variables"], "messages": request["messages"]}
        build_environment().given = identities(variables)
        for piece in compiled(request["template"]).generate(variables):
            characters += len(piece)
            if characters > OUTPUT_LIMIT_CHARACTERS:
                return {"error": "size", "message": f"more than {OUTPUT_LIMIT_CHARACTERS} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "memory", "message": f"more than {MEMORY_LIMIT_BYTES >> 20} MiB of memory"}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except Exception as error:
        return {"error": "render", "message": str(error)[:1000] or type(error).__name__}


def main() -> None:
    """Answers the requests on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        sys.path[:] = request["path"]
        limit_resources(request["cpu_s"])
        sys.stdout.write(json.dumps(answer(request)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
