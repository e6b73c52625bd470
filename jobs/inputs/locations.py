"""Where an input lies: a path, a URL, or standard input."""

from exporters import filesystems

STDIN = "-"


def shown(location: str) -> str:
    """A location as messages and manifests show it: without what may let others in."""
    if location == STDIN:
        return "standard input"
    return filesystems.shown(location) if filesystems.is_url(location) else location
