"""Targets of the fuzz runner that go wrong, each in its own way."""

import os
import time

from tests.fuzz.target import Target

HOW = {
    "works": lambda case: None,
    "refuses": lambda case: int("x"),
    "raises": lambda case: {}["missing"],
    "crashes": lambda case: os.abort(),
    "hangs": lambda case: time.sleep(100),
    "allocates": lambda case: bytearray(64 << 30),
}
TARGETS = {name: Target(lambda rng: rng.random(), run, (ValueError,)) for name, run in HOW.items()}
