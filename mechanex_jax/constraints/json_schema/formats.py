"""The values of `format` that are enforced, as regular expressions in Python's syntax for the whole string.

Each is at least as strict as jsonschema's `FormatChecker` with all its optional packages, and follows the RFC that JSON Schema
names, with these restrictions: years from 0001, no leap seconds and upper-case `T` and `Z` in times; a host name has up to
three labels of 63 characters, or up to seven of 31 (its limit of 253 in all then holds by itself); e-mail addresses have no
quoted local part and no address literal, and may be of any length. Not enforced, as their rules are
not regular or need tables: `regex`, `idn-hostname`. Every other unknown value is an annotation too.
"""

from __future__ import annotations

import functools

from mechanex_jax.constraints import regex
from mechanex_jax.constraints.automata.dfa import CharDfa

_NOT_LEAP = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_LEAP_YEAR = r"(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DATE = rf"(?:{_YEAR}-{_NOT_LEAP}|{_LEAP_YEAR}-02-29)"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-]{_CLOCK})"

_CLOCK_UNITS = r"T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAY_UNITS = r"(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_DURATION = rf"P(?:[0-9]+W|{_DAY_UNITS}(?:{_CLOCK_UNITS})?|{_CLOCK_UNITS})"


def _label(longest: int) -> str:
    return rf"[A-Za-z0-9](?:[A-Za-z0-9-]{{0,{longest - 2}}}[A-Za-z0-9])?"


_HOST = rf"(?:{_label(63)}(?:\.{_label(63)}){{0,2}}|{_label(31)}(?:\.{_label(31)}){{0,6}})"
_DOMAIN_LABEL = "[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
_DOMAIN = rf"{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ANY_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a1-\ud7ff\ue000-\ufdcf\ufdf0-\uffef-]+"
_ANY_LABEL = (
    r"[A-Za-z0-9\u00a1-\ud7ff\ufdf0-\uffef](?:[A-Za-z0-9\u00a1-\ud7ff\ufdf0-\uffef-]*[A-Za-z0-9\u00a1-\ud7ff\ufdf0-\uffef])?"
)

_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_H = r"[0-9A-Fa-f]{1,4}"
_TAIL = rf"(?:{_H}:{_H}|{_IPV4})"
_IPV6 = "(?:" + "|".join((
    rf"(?:{_H}:){{6}}{_TAIL}",
    rf"::(?:{_H}:){{5}}{_TAIL}",
    rf"(?:{_H})?::(?:{_H}:){{4}}{_TAIL}",
    rf"(?:(?:{_H}:){{0,1}}{_H})?::(?:{_H}:){{3}}{_TAIL}",
    rf"(?:(?:{_H}:){{0,2}}{_H})?::(?:{_H}:){{2}}{_TAIL}",
    rf"(?:(?:{_H}:){{0,3}}{_H})?::{_H}:{_TAIL}",
    rf"(?:(?:{_H}:){{0,4}}{_H})?::{_TAIL}",
    rf"(?:(?:{_H}:){{0,5}}{_H})?::{_H}",
    rf"(?:(?:{_H}:){{0,6}}{_H})?::",
)) + ")"  # fmt: skip

_UCS = r"\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U0001fffd\U00020000-\U0002fffd\U00030000-\U0003fffd"


def _uri(more: str, relative: bool) -> str:
    """RFC 3986's `URI`, or `URI-reference`; `more` are the characters that RFC 3987 allows besides."""
    escape = r"%[0-9A-Fa-f]{2}"
    unreserved, sub = rf"A-Za-z0-9._~{more}\-", r"!$&'()*+,;="
    char = rf"(?:[{unreserved}{sub}:@]|{escape})"
    userinfo = rf"(?:[{unreserved}{sub}:]|{escape})*"
    name = rf"(?:[{unreserved}{sub}]|{escape})*"
    future = rf"v[0-9A-Fa-f]+\.[A-Za-z0-9._~{sub}:-]+"
    authority = rf"(?:{userinfo}@)?(?:\[(?:{_IPV6}|{future})\]|{name})(?::[0-9]*)?"
    absolute, empty = rf"/(?:{char}+(?:/{char}*)*)?", rf"(?:/{char}*)*"
    private = r"\ue000-\uf8ff\U000f0000-\U000ffffd" if more else ""
    end = rf"(?:\?(?:{char}|[/?{private}])*)?(?:#(?:{char}|[/?])*)?"
    rooted = rf"//{authority}{empty}|{absolute}"
    whole = rf"[A-Za-z][A-Za-z0-9+.-]*:(?:{rooted}|{char}+(?:/{char}*)*|){end}"
    if not relative:
        return whole
    first = rf"(?:[{unreserved}{sub}@]|{escape})+"
    return rf"(?:{whole}|(?:{rooted}|{first}(?:/{char}*)*|){end})"


_VARIABLE = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:\.?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2}))*(?::[1-9][0-9]{0,3}|\*)?"
_LITERAL = rf"(?:[!#$&(-;=?-\[\]_a-z~{_UCS}\ue000-\uf8ff]|%[0-9A-Fa-f]{{2}})"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"

PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_DOMAIN}",
    "idn-email": rf"{_ANY_ATOM}(?:\.{_ANY_ATOM})*@{_ANY_LABEL}(?:\.{_ANY_LABEL})*",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": _uri("", False),
    "uri-reference": _uri("", True),
    "iri": _uri(_UCS, False),
    "iri-reference": _uri(_UCS, True),
    "uri-template": rf"(?:{_LITERAL}|\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}})*",
    "uuid": r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}",
    "json-pointer": rf"(?s:{_POINTER})",
    "relative-json-pointer": rf"(?s:(?:0|[1-9][0-9]*)(?:#|{_POINTER}))",
}


@functools.cache
def automaton(name: str) -> CharDfa:
    """The strings of a format in `PATTERNS`."""
    return regex.char_dfa(PATTERNS[name])
