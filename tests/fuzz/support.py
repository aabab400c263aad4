"""The surroundings of a fuzz process: the helpers of the tests, caches in a folder of its own, JAX on the CPU."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

if str(ROOT / "tests" / "support") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
for variable in ("MECHANEX_CACHE", "MECHANEX_DATA"):
    if variable not in os.environ:
        os.environ[variable] = tempfile.mkdtemp(prefix="fuzz-")
        atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
