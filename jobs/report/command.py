"""What `qkvmill report` does before libraries of charts are loaded: where the page may go."""

import os
from dataclasses import dataclass
from pathlib import Path

from exporters.bucket import Place
from exporters.errors import ExportError
from exporters.manifest import read_manifest
from exporters.safefile import open_regular
from jobs.errors import ConfigError
from jobs.loading import loading
from jobs.progress import Reporter

GENERATOR = '<meta name="generator" content="qkvmill report">'
LOOK = 4096  # bytes of a file in which GENERATOR is looked for
NEEDED = ("altair", "jinja2", "vl_convert")
MOST_WINDOWS = 12


@dataclass(frozen=True, kw_only=True)
class Made:
    """A report that was written."""

    path: str
    bytes: int
    windows: tuple[int, ...]  # that it shows
    left_out: dict[str, str]  # section -> why it could not be made


def report(
    export: Place,
    *,
    out: Path | None,
    windows: tuple[int, ...],
    tokenizer: str | None,
    reporter: Reporter,
) -> Made:
    """Write one HTML page about a committed export.

    Args:
        out: the page; None for the export's own name and .html, beside it, or in the current
            folder for one in a bucket.
        windows: that are shown; none for three that are spread over the export.
        tokenizer: what shows ids as text, as `tokenizer_of_export` takes it.

    Raises:
        ConfigError: if an extra is not installed, or the page would go into the export or replace
            what is none of ours.
        ExportError: if there is no such export or window, it is damaged, or the page cannot be
            written.
        TokenizerError: if the tokenizer is not the export's.
    """
    if len(windows) > MOST_WINDOWS:
        raise ConfigError(f"--window is given {len(windows)} times; {MOST_WINDOWS} fit a page")
    page = destination(export, out)
    try:
        with loading():
            from jobs.report.make import make
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise ConfigError(
            f"a report needs the package {error.name}, which is not installed; install it with "
            "pip install 'qkvmill[report]'"
        ) from error
    return make(export, page, windows, tokenizer, reporter)


def destination(export: Place, out: Path | None) -> Path:
    """Where the page goes.

    Raises:
        ConfigError: if that is in the export, a folder, or a file that is no report.
        ExportError: if there is no export.
    """
    read_manifest(export)
    page = _beside(export) if out is None else out
    if isinstance(export, Path) and Path(os.path.realpath(page)).is_relative_to(
        os.path.realpath(export)
    ):
        raise ConfigError(
            f"--out {page} lies in the export, which holds nothing but its own files; give a path "
            "elsewhere"
        )
    if os.path.lexists(page) and not _is_ours(page):
        raise ConfigError(
            f"--out {page} is there already and is no report; give another path, or remove it"
        )
    return page


def _beside(export: Place) -> Path:
    """The export's own name and .html."""
    if not isinstance(export, Path):
        return Path(export.url.rpartition("/")[2] + ".html")
    named = export if export.name not in ("", "..") else Path(os.path.abspath(export))
    if not named.name:
        raise ConfigError(f"{export} has no name to call the page by; give --out")
    return named.with_name(named.name + ".html")


def _is_ours(page: Path) -> bool:
    """Whether a file is a report, which may be made anew."""
    try:
        with open_regular(page) as file:
            return GENERATOR.encode() in file.read(LOOK)
    except (ExportError, OSError):
        return False
