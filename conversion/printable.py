"""Text from outside, made fit for a terminal and for lines of a report.

Names of tensors, of files and of anything else in a checkpoint may hold codes that a terminal obeys (move the
cursor, change the title, hide what follows), or signs that turn the reading order.
"""

import re

CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and line feed
READING_ORDER = "\u2028-\u202e\u2066-\u2069"  # and the line ends that are none of a terminal's
SURROGATES = "\ud800-\udfff"  # which no encoding has
CONTROL_CHARACTERS = re.compile(f"[{CONTROL}{READING_ORDER}{SURROGATES}]")
REPLACEMENT = "\ufffd"


def printable(text: str) -> str:
    """`text` with U+FFFD for what would command a terminal; its lines stay."""
    return CONTROL_CHARACTERS.sub(REPLACEMENT, text)


def in_a_line(text: str) -> str:
    """As `printable`, without line ends and tabs: one cell of a table."""
    return re.sub(r"[\t\n]", REPLACEMENT, printable(text))
