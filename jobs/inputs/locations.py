"""Where an input lies: a path, a URL, or standard input."""

import re

STDIN = "-"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(location: str) -> bool:
    return URL.match(location) is not None


def is_web(location: str) -> bool:
    return location.partition("://")[0].lower() in ("http", "https")


def shown(location: str) -> str:
    """A location as messages and manifests show it: without what may let others in.

    That is a URL's user and password, and the query of an http one, which may be signed.
    """
    if location == STDIN:
        return "standard input"
    if not is_url(location):
        return location
    scheme, _, rest = location.partition("://")
    place, slash, path = rest.partition("/")
    if is_web(location):
        path = path.partition("?")[0]
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"
