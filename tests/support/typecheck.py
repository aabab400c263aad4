"""The run-time type checker of the tests: beartype, in which an int is a float, as type checkers have it."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
