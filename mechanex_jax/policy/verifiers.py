"""Verifiers: what is said against a finished text, and what that costs. A new verifier is one function and one row.

A verifier looks at text alone. What it needs besides, such as a schema or tests, comes from the policy.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mechanex_jax.policy.tool_schema import effective_schema

if TYPE_CHECKING:
    from mechanex_jax.policy.controls import Policy
    from mechanex_jax.policy.sandbox.runner import UnitTestRunner

_SHOWN = 300  # characters of a reason
_GRAMMAR_REGEX = "regex:"  # a grammar that is one regular expression
_TRAILING = ".,;:!?\u2026\u3002\uff01\uff1f"  # punctuation that makes no other answer


@dataclasses.dataclass(frozen=True)
class Subject:
    """What verifiers know besides the text.

    Attributes:
      policy: whose verifiers are asked.
      schema: `effective_schema` of its constraints.
      run_tests: runs code with tests and says how it went; see `mechanex_jax.policy.sandbox`.
    """

    policy: Policy
    schema: dict[str, Any] | None
    run_tests: UnitTestRunner

    @classmethod
    def of(cls, policy: Policy, run_tests: UnitTestRunner | None = None) -> Subject:
        """The subject of a policy; tests run in the library's own sandbox unless a runner is given."""
        if run_tests is None:
            from mechanex_jax.policy.sandbox.runner import run_unit_tests

            run_tests = run_unit_tests
        return cls(policy, effective_schema(policy.constraints), run_tests)

    @functools.cached_property
    def validator(self) -> Any:
        return None if self.schema is None else _validator(self.schema)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Attributes:
    ok: no enabled verifier complained.
    penalty: what the complaints cost together; the score is 1 less this.
    reasons: "name: complaint" each.
    """

    ok: bool
    penalty: float
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Verifier:
    """Attributes:
    penalty: taken off the score.
    check: (text, subject) -> None, or what is wrong with the text.
    needs: what a policy must have besides, in words for an error; None for nothing.
    equipped: whether a policy has it.
    """

    penalty: float
    check: Callable[[str, Subject], str | None]
    needs: str | None = None
    equipped: Callable[[Policy], bool] = lambda policy: True


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _parsed(text: str) -> tuple[Any, str | None]:
    """(value, None) of a text that is JSON as a whole, else (None, why it is not)."""
    try:
        return json.loads(text.strip(), parse_constant=_no_constant), None
    except RecursionError:
        return None, "nested too deeply to be read as JSON"
    except ValueError as error:
        return None, f"not JSON: {error}"


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for

    kind = validator_for(schema, default=Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def _against(text: str, validator: Any) -> str | None:
    """What a schema says against a text."""
    from jsonschema.exceptions import best_match

    value, wrong = _parsed(text)
    if wrong is not None:
        return wrong
    error = best_match(validator.iter_errors(value))
    return None if error is None else f"at {error.json_path}: {error.message}"


def _syntax(text: str, subject: Subject) -> str | None:
    value, wrong = _parsed(text)
    if wrong is None and subject.policy.constraints.json_mode and not isinstance(value, dict):
        return "JSON, but not an object"
    return wrong


def _json_schema(text: str, subject: Subject) -> str | None:
    return _against(text, subject.validator)


def _tool_args(text: str, subject: Subject) -> str | None:
    if subject.policy.constraints.tool_schema is not None:
        return _against(text, subject.validator)
    value, wrong = _parsed(text)
    if wrong is not None:
        return wrong
    if not isinstance(value, dict) or not isinstance(value.get("tool_name"), str):
        return 'not a call such as {"tool_name": "search", "arguments": {}}'
    return None if isinstance(value.get("arguments"), dict) else "arguments is not an object"


def _regex(text: str, subject: Subject) -> str | None:
    return _unmatched(subject.policy.constraints.regex_pattern, text)


def _unmatched(pattern: str | None, text: str) -> str | None:
    return None if pattern is None or re.fullmatch(pattern, text) else f"does not match {pattern!r}"


def _broken_code(code: str) -> str | None:
    """Why a text is not Python code that compiles; None if it is. Nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<code>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{type(error).__name__} in line {error.lineno}: {error.msg}"
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _code(text: str, subject: Subject) -> str:
    from mechanex_jax.policy.sandbox.runner import code_of

    return code_of(text, subject.policy.verifiers.code_language)


def _code_compile(text: str, subject: Subject) -> str | None:
    code = _code(text, subject)
    return _broken_code(code) if code.strip() else "there is no code"


def _unit_tests(text: str, subject: Subject) -> str | None:
    controls = subject.policy.verifiers
    result = subject.run_tests(_code(text, subject), controls.code_unit_tests, controls.unit_test_timeout_ms)
    return None if result.passed else result.reason or "a test failed"


def _soft(text: str, subject: Subject) -> str | None:
    """Factuality weighs candidates against each other: see `agreement`. No text fails by itself."""
    return None


VERIFIERS = {
    "syntax": Verifier(0.7, _syntax),
    "json_schema": Verifier(
        0.7,
        _json_schema,
        "a schema: constraints.json_schema, json_mode, required_fields or tool_schema",
        lambda policy: effective_schema(policy.constraints) is not None,
    ),
    "regex": Verifier(0.4, _regex, "constraints.regex_pattern", lambda policy: policy.constraints.regex_pattern is not None),
    "code_compile": Verifier(0.8, _code_compile),
    "unit_tests": Verifier(
        0.9, _unit_tests, "verifiers.code_unit_tests", lambda policy: bool(policy.verifiers.code_unit_tests)
    ),
    "tool_args": Verifier(0.7, _tool_args),
    "factuality": Verifier(0.0, _soft),
}


def verify(text: str, subject: Subject) -> Verdict:
    """Ask all of the policy's verifiers about a text. The penalty may exceed 1: complaints add up."""
    penalty, reasons = 0.0, []
    for name in subject.policy.verifiers.enabled:
        reason = VERIFIERS[name].check(text, subject)
        if reason is not None:
            penalty += VERIFIERS[name].penalty
            reasons.append(f"{name}: {reason[:_SHOWN]}")
    return Verdict(not reasons, penalty, tuple(reasons))


def agreement(texts: Sequence[str]) -> list[float]:
    """Self-consistency: for each text, the share of all texts that give the same answer, itself included.

    Answers are the same that differ in case, whitespace and punctuation at the end alone. Nothing is looked up: that many
    candidates say a thing makes it likelier to be what the model holds true, not true. After arXiv 2203.11171.
    """
    answers = [" ".join(text.casefold().split()).rstrip(_TRAILING + " ") for text in texts]
    return [answers.count(answer) / len(answers) for answer in answers]


def broken_constraint(text: str, policy: Policy) -> str | None:
    """Which of a policy's constraints a text breaks, in words; None if all hold.

    Masks hold them while a text is made; a text that ended early, at its length, may still be half of one. A grammar is not
    parsed again unless it is a regular expression.
    """
    constraints = policy.constraints
    schema = effective_schema(constraints)
    grammar = constraints.grammar or ""
    patterns = [constraints.regex_pattern, grammar.removeprefix(_GRAMMAR_REGEX) if grammar.startswith(_GRAMMAR_REGEX) else None]
    found = [None if schema is None else _against(text, _validator(schema)), *(_unmatched(p, text) for p in patterns)]
    lowered = text.lower()
    found += [f"contains the forbidden {term!r}" for term in constraints.forbidden_terms if term.lower() in lowered]
    found += [f"contains the stop sequence {stop!r}" for stop in constraints.stop_sequences if stop in text]
    reasons = [f"constraint: {reason[:_SHOWN]}" for reason in found if reason is not None]
    return " | ".join(reasons) or None
