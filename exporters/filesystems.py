"""Other machines' filesystems, through fsspec: which speaks a URL, what it tells, why it failed."""

import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from exporters.errors import ExportError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
CONNECT_SECONDS = 30
SILENT_SECONDS = 60

EXTRAS = {
    "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs"),
    "http": ("aiohttp", "http"), "https": ("aiohttp", "http"), "hf": ("huggingface_hub", "hf"),
}  # fmt: skip
"""Protocol -> the package that speaks it, and the extra of ours that installs it."""

VERSIONS = (
    "ETag", "etag", "Content-MD5", "blob_id", "generation", "LastModified", "last_modified",
    "Last-Modified", "mtime", "updated", "modify", "created",
)  # fmt: skip
"""What filesystems tell of a file that changes with its bytes, the surest first."""


def is_url(location: str) -> bool:
    return URL.match(location) is not None


def is_web(location: str) -> bool:
    return location.partition("://")[0].lower() in ("http", "https")


def shown(url: str) -> str:
    """A URL as messages and manifests show it: without what may let others in.

    That is its user and password, and the query of an http one, which may be signed.
    """
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    if is_web(url):
        path = path.partition("?")[0]
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and its path there; fsspec makes one for each process.

    Raises:
        ExportError: if nothing that is installed speaks its protocol.
    """
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if is_web(url):
            options["client_kwargs"] = {"timeout": _http_timeout()}
        system, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        package, extra = EXTRAS.get(protocol, (None, None))
        if extra is None:
            raise ExportError(f"{shown(url)} could not be opened: {reason(error)}") from error
        raise ExportError(
            f"{shown(url)} could not be opened: {protocol}:// needs the package {package}, which "
            f"is not installed; install it with pip install 'qkvmill[{extra}]'"
        ) from error
    except ValueError as error:
        raise ExportError(
            f"{shown(url)} could not be opened: {reason(error)}; known are {', '.join(EXTRAS)} and "
            "what else fsspec knows"
        ) from error
    except Exception as error:  # filesystems raise whatever the library below them does
        raise ExportError(f"{shown(url)} could not be opened: {reason(error)}") from error
    return system, path


def local_path(url: str) -> str | None:
    """The path that a URL of this machine's filesystem stands for; None for any other.

    Raises:
        ExportError: if nothing that is installed speaks its protocol.
    """
    system, path = filesystem(url)
    return path if isinstance(system, LocalFileSystem) else None


def reason(error: BaseException | None) -> str:
    """Why something failed, in words of one line that name no URL."""
    if error is None:
        return "no reason was given"
    error = true_error(error)
    status = getattr(error, "status", None)
    if status == 404 or isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(status, int):
        return f"{status} {getattr(error, 'message', '')}".strip()
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return text or type(error).__name__


def true_error(error: BaseException) -> BaseException:
    """An error, or what made fsspec say of it that an http file is not there."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    of_http = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if of_http else error


def _http_timeout() -> Any:
    """Time limits for connecting and for silence; the whole of a file may take any time."""
    import aiohttp  # an extra

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
