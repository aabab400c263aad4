"""Verifiers: what is wrong with a finished text, and what that costs. A new one is a function and a row of `VERIFIERS`.

A verifier looks at the text alone. What it compares the text with, such as a schema or unit tests, is in `Criteria`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from mechanex_jax.policy.sandbox.code_blocks import extract_code
from mechanex_jax.policy.sandbox.runner import UnitTestRunner, run_unit_tests
from mechanex_jax.storage.json_values import JsonValue

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_MAX_REASON = 300  # characters
_GRAMMAR_REGEX = "regex:"  # a grammar that is one regular expression
_END_PUNCTUATION = ".,;:!?\u2026\u3002\uff01\uff1f"  # makes no other answer


@dataclasses.dataclass(frozen=True)
class Criteria:
    """What a text is checked against. The defaults ask for nothing.

    Attributes:
      enabled: names of the verifiers that are asked.
      schema: JSON Schema of the whole text; None: it need not be JSON.
      json_object: JSON must be an object.
      tool_calls: the schema is that of calls of known tools.
      regex_pattern: matches the whole text.
      grammar: as `grammar` of `generate`.
      forbidden_terms: never occur, in upper or lower case.
      stop_sequences: never occur.
      code_language: of the fenced block that holds the code.
      code_unit_tests: snippets that the code must pass.
      unit_test_timeout_ms: for code and tests together.
      run_tests: runs code with tests and says how it went, see `mechanex_jax.policy.sandbox`.
    """

    enabled: tuple[str, ...] = ()
    schema: Mapping[str, object] | None = None
    json_object: bool = False
    tool_calls: bool = False
    regex_pattern: str | None = None
    grammar: str | None = None
    forbidden_terms: tuple[str, ...] = ()
    stop_sequences: tuple[str, ...] = ()
    code_language: str = "python"
    code_unit_tests: tuple[str, ...] = ()
    unit_test_timeout_ms: int = 1500
    run_tests: UnitTestRunner = run_unit_tests

    @functools.cached_property
    def validator(self) -> Validator | None:
        """Checks values against the schema, formats included; None without a schema."""
        if self.schema is None:
            return None
        from jsonschema.validators import Draft202012Validator, validator_for

        kind = validator_for(self.schema, default=Draft202012Validator)
        return kind(self.schema, format_checker=kind.FORMAT_CHECKER)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What all enabled verifiers say of one text.

    Attributes:
      ok: none complained.
      penalty: sum over the complaints; the score is 1 less this.
      reasons: one "name: complaint" each.
    """

    ok: bool
    penalty: float
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Verifier:
    """A check of finished texts.

    Attributes:
      penalty: taken off the score of a text that fails.
      check: (text, criteria) -> what is wrong with the text, or None.
      needs: what the criteria must have for it, in words for an error; None for nothing.
      equipped: whether criteria have that.
    """

    penalty: float
    check: Callable[[str, Criteria], str | None]
    needs: str | None = None
    equipped: Callable[[Criteria], bool] = lambda criteria: True


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _parse_json(text: str) -> tuple[JsonValue, str | None]:
    """(value, None) of a text that is JSON as a whole, else (None, why it is not)."""
    try:
        return json.loads(text.strip(), parse_constant=_reject_constant), None
    except RecursionError:
        return None, "nested too deeply to be read as JSON"
    except ValueError as error:
        return None, f"not JSON: {error}"


def _schema_error(text: str, criteria: Criteria) -> str | None:
    """Why a text is not JSON that the criteria's schema accepts; None if it is, or where there is no schema."""
    if criteria.validator is None:
        return None
    from jsonschema.exceptions import best_match

    value, problem = _parse_json(text)
    if problem is not None:
        return problem
    error = best_match(criteria.validator.iter_errors(value))
    return None if error is None else f"at {error.json_path}: {error.message}"


def _pattern_error(text: str, pattern: str | None) -> str | None:
    return None if pattern is None or re.fullmatch(pattern, text) else f"does not match {pattern!r}"


def _compile_error(code: str) -> str | None:
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


def _check_syntax(text: str, criteria: Criteria) -> str | None:
    value, problem = _parse_json(text)
    if problem is None and criteria.json_object and not isinstance(value, dict):
        return "JSON, but not an object"
    return problem


def _check_tool_call(text: str, criteria: Criteria) -> str | None:
    if criteria.tool_calls:
        return _schema_error(text, criteria)
    value, problem = _parse_json(text)
    if problem is not None:
        return problem
    if not isinstance(value, dict) or not isinstance(value.get("tool_name"), str):
        return 'not a call such as {"tool_name": "search", "arguments": {}}'
    return None if isinstance(value.get("arguments"), dict) else "arguments is not an object"


def _check_regex(text: str, criteria: Criteria) -> str | None:
    return _pattern_error(text, criteria.regex_pattern)


def _check_compiles(text: str, criteria: Criteria) -> str | None:
    code = extract_code(text, criteria.code_language)
    return _compile_error(code) if code.strip() else "there is no code"


def _check_unit_tests(text: str, criteria: Criteria) -> str | None:
    code = extract_code(text, criteria.code_language)
    result = criteria.run_tests(code, criteria.code_unit_tests, criteria.unit_test_timeout_ms)
    return None if result.passed else result.reason or "a test failed"


def _check_factuality(text: str, criteria: Criteria) -> str | None:
    """No text fails by itself: factuality weighs candidates against each other, see `agreement`."""
    return None


VERIFIERS = {
    "syntax": Verifier(0.7, _check_syntax),
    "json_schema": Verifier(
        0.7,
        _schema_error,
        "a schema: constraints.json_schema, json_mode, required_fields or tool_schema",
        lambda criteria: criteria.schema is not None,
    ),
    "regex": Verifier(0.4, _check_regex, "constraints.regex_pattern", lambda criteria: criteria.regex_pattern is not None),
    "code_compile": Verifier(0.8, _check_compiles),
    "unit_tests": Verifier(
        0.9, _check_unit_tests, "verifiers.code_unit_tests", lambda criteria: bool(criteria.code_unit_tests)
    ),
    "tool_args": Verifier(0.7, _check_tool_call),
    "factuality": Verifier(0.0, _check_factuality),
}


def verify(text: str, criteria: Criteria) -> Verdict:
    """Ask all enabled verifiers about a text. The penalty may exceed 1: complaints add up."""
    penalty, reasons = 0.0, []
    for name in criteria.enabled:
        reason = VERIFIERS[name].check(text, criteria)
        if reason is not None:
            penalty += VERIFIERS[name].penalty
            reasons.append(f"{name}: {reason[:_MAX_REASON]}")
    return Verdict(not reasons, penalty, tuple(reasons))


def agreement(texts: Sequence[str]) -> list[float]:
    """Self-consistency: for each text, the share of all texts that give the same answer, itself included.

    Answers that differ only in case, whitespace and punctuation at the end are the same. Nothing is looked up: that many
    candidates say a thing makes it likelier to be what the model holds true, not true. After arXiv 2203.11171.
    """
    answers = [" ".join(text.casefold().split()).rstrip(_END_PUNCTUATION + " ") for text in texts]
    return [answers.count(answer) / len(answers) for answer in answers]


def broken_constraint(text: str, criteria: Criteria) -> str | None:
    """Say which constraints a text breaks; None if all hold.

    Masks hold constraints while a text is made; a text that ended early, at its length, may still be half of one. A grammar is
    not parsed again unless it is a regular expression.
    """
    grammar, lowered = criteria.grammar or "", text.lower()
    problems = [_schema_error(text, criteria), _pattern_error(text, criteria.regex_pattern)]
    if grammar.startswith(_GRAMMAR_REGEX):
        problems.append(_pattern_error(text, grammar.removeprefix(_GRAMMAR_REGEX)))
    problems += [f"contains the forbidden {term!r}" for term in criteria.forbidden_terms if term.lower() in lowered]
    problems += [f"contains the stop sequence {stop!r}" for stop in criteria.stop_sequences if stop in text]
    reasons = [f"constraint: {problem[:_MAX_REASON]}" for problem in problems if problem is not None]
    return " | ".join(reasons) or None
