"""Jinja for templates that come with a checkpoint: no access to Python, and bounded in steps, time and size.

Jinja's sandbox bounds `range` alone. Here loops, calls and strings have limits too, and what templates on the hub don't use
(`lipsum`, `center`, `format`, ...) is absent, so that a template which asks for it is refused by name.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from typing import TypeVar

from jinja2 import Template, TemplateRuntimeError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000
MAX_SECONDS = 5.0
MAX_SIZE = 10_000_000  # characters of a string, items of a list
_MAX_WIDTH = 10_000  # to which a call may pad, and by which a string may be repeated
_MAX_BITS = 4096  # of an integer

_FILTERS = """
abs batch capitalize count d default dictsort e escape first float groupby indent int items join last length list lower map max
min reject rejectattr replace reverse round safe select selectattr slice sort string sum title trim unique upper wordcount
"""
_WIDE = re.compile(r"\d{5,}|[*]|\{[^}]*\{")  # a width of five digits, or one that is an argument

Item = TypeVar("Item")


@dataclasses.dataclass
class _Budget:
    """The steps and the time that one rendering has left."""

    steps: int
    end: float

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TemplateRuntimeError(f"it takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.end:
            raise TemplateRuntimeError(f"it takes more than {MAX_SECONDS:g} seconds")


_budget: ContextVar[_Budget] = ContextVar("budget")


def _bounded(size: float) -> None:
    if size > MAX_SIZE:
        raise TemplateRuntimeError(f"it makes more than {MAX_SIZE} characters or items")


def _counted(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each of which is a step."""
    budget = _budget.get()
    for item in items:
        budget.step()
        yield item


def _joined(parts: Iterable[object]) -> str:
    """Concatenation, as `~`, blocks and macros do it."""
    texts, size = [], 0
    for part in parts:
        texts.append(str(part))
        size += len(texts[-1])
        _bounded(size)
    return "".join(texts)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; the text inside stays as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Code(CodeGenerator):
    """Loops count their steps, and `~` its characters."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment in which chat templates are rendered, by `render`.

    Errors:
      TemplateError: a template that breaks a limit, or uses what is absent.
    """

    code_generator_class = _Code
    counted = staticmethod(_counted)
    concat = staticmethod(_joined)  # pyright: ignore[reportAssignmentType]
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols])
        self.filters = {name: self.filters[name] for name in _FILTERS.split()}
        self.filters["join"] = self._join
        self.filters["replace"] = self._replace
        self.filters["indent"] = self._indent
        del self.globals["lipsum"]

    @staticmethod
    def _join(value: Iterable[object], d: str = "", attribute: str | None = None) -> str:
        items = [item[attribute] if isinstance(item, Mapping) and attribute else item for item in _counted(value)]
        parts = [part for item in items for part in (d, item)][1:]
        return _joined(parts)

    @staticmethod
    def _replace(text: object, old: str, new: str, count: int = -1) -> str:
        text = str(text)
        _bounded(len(text) + (len(text) // max(len(old), 1) + 1) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    @staticmethod
    def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        margin = width if isinstance(width, str) else " " * min(width, _MAX_WIDTH)
        lines = str(text).split("\n")
        _bounded(len(text) + len(lines) * len(margin))
        rest = [margin + line if line or blank else line for line in lines[1:]]
        return "\n".join([margin + lines[0] if first else lines[0], *rest])

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Arithmetic whose result is known to be small."""
        _budget.get().step()
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, Sized) and isinstance(times, int):
                    _bounded(len(many) * max(times, 0))
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _bounded(len(left) + len(right))
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise SecurityError("a format with a large width")
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise TemplateRuntimeError("it makes an integer that is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: object, *args: object, **options: object) -> object:
        """Calls of macros, functions and methods, each a step."""
        _budget.get().step()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            self._check_method(owner, getattr(function, "__name__", ""), (*args, *options.values()))
        return super().call(context, function, *args, **options)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """`format` of a string, unless a width in it is large or an argument."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDE.search(getattr(value, "__self__", "")):
            raise SecurityError("a format with a large width")
        return wrapped

    @staticmethod
    def _check_method(owner: str, method: str, values: tuple[object, ...]) -> None:
        """Refuse a method of a string whose result would be large."""
        if any(isinstance(value, int) and value > _MAX_WIDTH for value in values):
            raise TemplateRuntimeError(f"{method}() with a number above {_MAX_WIDTH}")
        if method == "replace":
            _bounded(len(owner) + (len(owner) // max(len(str(values[0])), 1) + 1) * len(str(values[1])))
        if method == "join" and values:
            if not isinstance(values[0], (str, list, tuple, dict)):
                raise TemplateRuntimeError("join() of something that is no list")
            _bounded(sum(len(str(part)) + len(owner) for part in values[0]))


def render(environment: BoundedEnvironment, template: Template, variables: dict[str, object]) -> str:
    """The text of a template, within the limits.

    Raises:
      TemplateError: a limit is broken, or the template raises.
    """
    token = _budget.set(_Budget(MAX_STEPS, time.monotonic() + MAX_SECONDS))
    try:
        return _joined(_counted(template.generate(variables)))
    finally:
        _budget.reset(token)
