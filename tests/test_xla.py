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


# As if the installed jaxlib were an affected one. XLA reads its flags when a backend starts, which these processes leave out.
AS_AFFECTED = "import jaxlib.version; jaxlib.version.__version__ = '0.10.2'; "

# Fills the process with other mappings up to the limit of Linux less `free`, then compiles programs that take more than that.
WALK = """
import itertools, mmap, sys
import jax, jax.numpy as jnp
from mechanex_jax import xla
relieved, free = sys.argv[1] == "relieved", 1_000
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
jax.jit(lambda x: x + 1)(jnp.zeros(4))
room = int(open("/proc/sys/vm/max_map_count").read()) - xla.count_mappings() - free
protections = itertools.cycle((mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE))  # equal neighbours would be one mapping
filling = [mmap.mmap(-1, 4096, private, next(protections)) for _ in range(room)]
print("filled", flush=True)
programs, falls, before = [], 0, 0
guard = xla.mapping_guard()
for number in range(80):
    loop = lambda x, k: jax.lax.fori_loop(0, 3 + number, lambda _, y: y * k + 1, x)
    programs.append(jax.jit(lambda x: [loop(x, k) for k in range(10)]))
    programs[-1](jnp.zeros(4))
    if relieved:
        before = xla.count_mappings()
        xla.relieve_mappings()
        falls += max(0, before - xla.count_mappings())
print("taken", falls)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "MECHANEX_MAX_MAPPINGS")}
    everything = {**inherited, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=everything, cwd=ROOT, timeout=300
    )


LIMITED = xla.mapping_guard() is not None  # Linux limits mappings


@pytest.mark.slow
def test_a_fused_reduction_is_right_once_the_library_is_imported_and_wrong_before_only_in_the_versions_that_are_listed():
    result = run("import mechanex_jax" + REDUCTION)
    assert result.returncode == 0, result.stderr
    assert (run(REDUCTION).returncode == 0) == (jaxlib.__version__ not in xla.AFFECTED)


OTHER, OWN = "--xla_force_host_platform_device_count=2", f"{xla.FLAG}=-reduce"
SET = f"{xla.FLAG}=individual_dot"


@pytest.mark.parametrize(
    ("flags", "with_it"), [("", SET), (OTHER, f"{OTHER} {SET}"), (OWN, OWN), (f"{OTHER} {OWN}", f"{OTHER} {OWN}")]
)
@pytest.mark.parametrize(
    ("version", "needs_it"),
    [("0.10.1", False), ("0.10.2", True), ("0.11.0", True), ("0.11.1", False), ("0.12.0", False), ("0.12.0.dev1", False)],
)
def test_the_flag_is_added_for_the_listed_versions_and_a_value_of_the_users_own_stays(version, needs_it, flags, with_it):
    assert xla.flags_for(version, flags) == (with_it if needs_it else flags)


@pytest.mark.slow
def test_importing_the_library_sets_the_flag_beside_others():
    result = run(f"{AS_AFFECTED}import os, mechanex_jax; print(os.environ['XLA_FLAGS'])", XLA_FLAGS=OTHER)
    assert result.stdout.strip() == f"{OTHER} {SET}"


@pytest.mark.slow
def test_a_backend_that_is_up_already_is_warned_of():
    result = run(f"import jax; jax.devices(); {AS_AFFECTED}import mechanex_jax")
    assert result.returncode == 0
    assert result.stderr.count("RuntimeWarning") == 1 and f"XLA_FLAGS={SET}" in result.stderr


@pytest.mark.slow
def test_a_process_at_the_limit_of_mappings_ends_without_the_guard_and_goes_on_with_it():
    """The limit is the system's own: other mappings fill the process, so that a few programs reach it."""
    if not LIMITED:
        return
    with_guard = run(WALK, "relieved")
    assert with_guard.returncode == 0, with_guard.stderr
    assert int(with_guard.stdout.split()[-1]) > 1_000  # mappings given back: more than there was room for
    without = run(WALK, "left alone")
    assert without.stdout.split() == ["filled"] and without.returncode < 0


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "warned"), [("100", str(int(LIMITED))), ("1000000", "0")])
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
