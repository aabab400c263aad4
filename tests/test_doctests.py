"""The examples in docstrings: every public function of `constraints` and `loops` has one, and it holds.

An example sees the names of its own module and of these here; `toy()` is the smallest `LanguageModel` there is.
"""

from __future__ import annotations

import doctest
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from positional_toy import positional

import mechanex_jax as mx
from mechanex_jax import constraints, loops

PACKAGES = [constraints, loops]
NAMES = {"jax": jax, "jnp": jnp, "np": np, "mx": mx, "toy": positional}
PUBLIC = [
    (package.__name__.split(".")[-1], name)
    for package in PACKAGES
    for name in package.__all__
    if callable(value := getattr(package, name)) and not inspect.isclass(value)
]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_every_public_function_has_an_example_that_holds(package, name):
    function = getattr(getattr(mx, package), name)
    names = vars(sys.modules[function.__module__]) | NAMES
    test = doctest.DocTestParser().get_doctest(function.__doc__, names, f"{package}.{name}", None, 0)
    assert test.examples, "write one of two or three lines"
    outcome: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=outcome.append)
    assert not outcome, "".join(outcome)
