"""Text of strangers on a terminal: nothing in it is obeyed, whatever names and texts hold."""

import re

# C0 but tab and newline, DEL and C1, halves of characters, and what turns the order of the rest.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with its control characters as escapes; tabs and newlines are left."""
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)
