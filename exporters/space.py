"""Space on a disk, checked before it is needed."""

import shutil
from pathlib import Path

from exporters.errors import ExportError

HEADROOM = 16 << 20  # bytes for headers, the manifest and the folders


def check_space(root: Path, needed: int, kept: int = 0, option: str = "--out") -> None:
    """Raise ExportError if the disk that holds root has too few bytes free.

    Args:
        needed: bytes in all.
        kept: those of them that stand there, finished.
        option: what root was given as.
    """
    place = root.absolute()
    while not place.exists():
        place = place.parent
    free, more = shutil.disk_usage(place).free, needed - kept
    if free < more:
        said = f"; what is finished is kept, {readable(kept)}" if kept else ""
        raise ExportError(
            f"{option} {root} needs {readable(more)}, but its disk has {readable(free)} free; "
            f"make space, export less or use a smaller --dtype{said}"
        )


def readable(count: int) -> str:
    """A number of bytes in decimal units: 1234567 -> '1.2 MB'."""
    if count < 1000:
        return f"{count} bytes"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB", "PB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"
