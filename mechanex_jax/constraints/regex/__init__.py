"""Text constraints by regular expression: Python and ECMAScript syntax to automata."""

from mechanex_jax.constraints.regex.compile import chars, forbidding, network, parse

__all__ = ["chars", "forbidding", "network", "parse"]
