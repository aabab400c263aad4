"""Strict settings for all tests, and the real default model, loaded once."""

from __future__ import annotations

import os
import signal

# A runner in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub

# Where arrays are handled, shapes and types of signatures are checked at run time. Before anything of the library is imported.
# Not at the surface: what is wrong there has to meet the library's own errors.
from jaxtyping import install_import_hook  # noqa: E402

_ARRAY_CODE = ["architectures", "edits", "loops", "transforms"]
hook = install_import_hook([f"mechanex_jax.{name}" for name in _ARRAY_CODE], "typecheck.checked")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")


_OF_THE_MODEL = {"mx", "loaded", "smollm2_folder"}  # fixtures that load the default model


def pytest_collection_modifyitems(items):
    """Mark what needs the default model, by its fixtures and theirs."""
    for item in items:
        if _OF_THE_MODEL & set(getattr(item, "fixturenames", ())):
            item.add_marker("model")


@pytest.fixture(scope="module", autouse=True)
def _drop_programs():
    """Every compiled program holds dozens of memory mappings, of which a process may have 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def smollm2_folder():
    """The converted default model; fetched on a machine's first run."""
    from mechanex_jax import checkpoints

    return checkpoints.resolve("smollm2-135m-instruct").folder


@pytest.fixture(scope="session")
def mx():
    """The library with the default model loaded, in local mode whatever credentials the machine holds."""
    import mechanex_jax as mx

    mx.set_execution_mode("local")
    mx.load()
    return mx


@pytest.fixture(scope="session")
def loaded(mx):
    return mx.runtime.default.local_model()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model and its twin in `transformers`, by a name of `model_table.TABLE`."""
    from model_table import pairs

    return pairs(tmp_path_factory)


@pytest.fixture
def unchecked():
    """Shapes and types of signatures are not checked: what is wrong meets the library's own errors, as it does for users."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def compilations():
    """A function that runs another and returns how many XLA compilations that took."""
    import jax.monitoring

    seen = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **kw: seen.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )

    def count(call) -> int:
        before = len(seen)
        call()
        return len(seen) - before

    return count


@pytest.fixture
def source(tmp_path):
    """Ten rows of falling length, so that the order of work is not that of the file."""
    from jobfiles import write

    return write(tmp_path / "in.jsonl", [{"prompt": "x" * (10 - i), "id": f"row {i}"} for i in range(10)])


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.jsonl"
