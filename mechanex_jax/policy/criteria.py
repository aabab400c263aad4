"""What a policy holds finished texts to, in the form that verifiers read."""

from __future__ import annotations

from mechanex_jax.policy.controls import Policy, effective_schema
from mechanex_jax.policy.sandbox.runner import UnitTestRunner, run_unit_tests
from mechanex_jax.policy.verifiers import Criteria


def criteria_for(policy: Policy, run_tests: UnitTestRunner = run_unit_tests) -> Criteria:
    """Gather the criteria of a policy's constraints and verifiers.

    Args:
      policy: read and checked.
      run_tests: runs generated code; by default the library's own sandbox does.
    """
    constraints, verifiers = policy.constraints, policy.verifiers
    return Criteria(
        enabled=verifiers.enabled,
        schema=effective_schema(constraints),
        json_object=constraints.json_mode,
        tool_calls=constraints.tool_schema is not None,
        regex_pattern=constraints.regex_pattern,
        grammar=constraints.grammar,
        forbidden_terms=constraints.forbidden_terms,
        stop_sequences=constraints.stop_sequences,
        code_language=verifiers.code_language,
        code_unit_tests=verifiers.code_unit_tests,
        unit_test_timeout_ms=verifiers.unit_test_timeout_ms,
        run_tests=run_tests,
    )
