"""Isolation of generated code: an interpreter of its own, shut in as far as the system allows."""

from mechanex_jax.policy.sandbox.runner import Limits, TestResult, UnitTestRunner, run_unit_tests

__all__ = ["Limits", "TestResult", "UnitTestRunner", "run_unit_tests"]
