"""Containment of generated code: an interpreter of its own, with as few rights as the system lets it have."""

from mechanex_jax.policy.sandbox.runner import Limits, TestResult, UnitTestRunner, run_unit_tests

__all__ = ["Limits", "TestResult", "UnitTestRunner", "run_unit_tests"]
