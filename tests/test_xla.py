"""The guards around XLA, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

from mechanex_jax import xla

ROOT = Path(__file__).parents[1]
affected = pytest.mark.skipif(jaxlib.__version__ not in xla.AFFECTED, reason="this jaxlib computes it right")

REDUCTION = """
import jax, jax.numpy as jnp
i = jnp.arange(32_769, dtype=jnp.float32)
x = jnp.stack((i, 0 * i, 0 * i), axis=1)
f = lambda x: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)
assert f(x)[-1] == jax.jit(f)(x)[-1]
"""

PROGRAMS = """
import sys, warnings
import jax, numpy as np
sys.path.insert(0, "tests/support")
import mechanex_jax as mx
from toys import toy
model, seen = toy(), []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for capacity in range(256, 268):
        out = mx.loops.decode(model, [[1, 2]], 2, None, key=jax.random.key(0), max_new_tokens=3, capacity=capacity)
        seen.append(out.tokens.tolist())
assert all(tokens == seen[0] for tokens in seen)
print(sum("vm.max_map_count" in str(warning.message) for warning in caught))
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "MECHANEX_MAX_MAPPINGS")}
    everything = {**inherited, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=everything, cwd=ROOT, timeout=300)


@affected
@pytest.mark.slow
def test_a_fused_reduction_is_right_once_the_library_is_imported():
    assert run(REDUCTION).returncode != 0  # else this version is not affected
    result = run("import mechanex_jax" + REDUCTION)
    assert result.returncode == 0, result.stderr


@affected
@pytest.mark.slow
def test_a_value_of_the_users_own_stays_and_other_flags_too():
    show = "import os, mechanex_jax; print(os.environ['XLA_FLAGS'])"
    assert run(show, XLA_FLAGS=f"{xla.FLAG}=-reduce").stdout.strip() == f"{xla.FLAG}=-reduce"
    other = "--xla_force_host_platform_device_count=2"
    assert run(show, XLA_FLAGS=other).stdout.strip() == f"{other} {xla.FLAG}=individual_dot"


@affected
@pytest.mark.slow
def test_a_backend_that_is_up_already_is_warned_of():
    result = run("import jax; jax.devices(); import mechanex_jax")
    assert result.returncode == 0
    assert result.stderr.count("RuntimeWarning") == 1 and f"XLA_FLAGS={xla.FLAG}=individual_dot" in result.stderr


def test_an_unaffected_version_gets_no_flag(monkeypatch):
    monkeypatch.setattr(xla, "jaxlib_version", "0.12.0")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    xla.avoid_wrong_reductions()
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize(("limit", "warned"), [("100", "1"), ("1000000", "0")])
def test_programs_are_dropped_before_the_limit_of_mappings_and_it_is_said_once(limit, warned):
    result = run(PROGRAMS, MECHANEX_MAX_MAPPINGS=limit)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == warned


def test_mappings_are_counted_after_compilations_only_and_programs_stay_below_the_threshold(monkeypatch, recwarn):
    counts, cleared = iter([69, 70, 71]), []
    monkeypatch.setattr(xla.jax, "clear_caches", lambda: cleared.append(True))
    guard = xla.MappingGuard(100, lambda: next(counts), every=1)
    guard.relieve()  # nothing compiled: not counted
    for expected in (0, 1, 2):
        guard.on_duration("/jax/core/compile/backend_compile_duration", 0.1)
        guard.relieve()
        assert len(cleared) == expected
    assert len(recwarn) == 1
