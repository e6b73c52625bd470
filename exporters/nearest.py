"""The name that was probably meant, of those that there are."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 100  # characters of a word or name that is compared


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a word, whatever its case and its `_`; None if none is."""
    if len(word) > LONGEST:
        return None
    names = {_plain(name): name for name in known if len(name) <= LONGEST}
    near = get_close_matches(_plain(word), names, n=1)
    return names[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: a question, or nothing."""
    name = nearest(word, known)
    return "" if name is None else f"; did you mean {name}?"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
