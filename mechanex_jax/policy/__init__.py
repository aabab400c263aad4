"""`mx.policy`: policies, which describe as data how a text is made: sampling, steering, constraints, verifiers, retries.

The functions of this module work on the default session; `Mechanex(...).policy` has the same ones for a session of its own.
"""

from mechanex_jax import session, steering
from mechanex_jax.policy.presets import (
    diverse_chatbot,
    ensemble_vote,
    fast_tool_router,
    steering_preset,
    strict_json_extraction,
)
from mechanex_jax.policy.sandbox.runner import TestResult, UnitTestRunner, run_unit_tests
from mechanex_jax.policy.service import Policies
from mechanex_jax.storage.json_store import JsonStore, StoreError

default = Policies(session.default, steering.default)
auto_tune = default.auto_tune
clone_preset = default.clone_preset
compare = default.compare
delete = default.delete
evaluate = default.evaluate
get = default.get
list = default.list
list_presets = default.list_presets
publish_preset = default.publish_preset
run = default.run
save = default.save

__all__ = [
    "JsonStore",
    "Policies",
    "StoreError",
    "TestResult",
    "UnitTestRunner",
    "auto_tune",
    "clone_preset",
    "compare",
    "delete",
    "diverse_chatbot",
    "ensemble_vote",
    "evaluate",
    "fast_tool_router",
    "get",
    "list",
    "list_presets",
    "publish_preset",
    "run",
    "run_unit_tests",
    "save",
    "steering_preset",
    "strict_json_extraction",
]
