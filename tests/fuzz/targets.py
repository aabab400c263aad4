"""The table of targets."""

from . import support  # noqa: F401, I001  (first: the way to the helpers of the tests)
from . import arguments, constraints, files

TARGETS = files.TARGETS | constraints.TARGETS | arguments.TARGETS
