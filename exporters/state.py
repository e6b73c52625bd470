"""What stands in the folder of an export: nothing, one that is unfinished, or one that is finished.

The manifest decides. Beside one, `.work` is only what a job that was stopped after its commit had
no time to remove, whatever it holds. Without one, `.work` is what makes a folder ours.
"""

import os
from enum import StrEnum
from pathlib import Path

from exporters.bucket import Bucket, Place
from exporters.errors import ExportError
from exporters.manifest import FORMAT, MANIFEST
from exporters.safefile import open_regular
from exporters.strays import OWN_FILES, OWN_FOLDERS, WORK


class State(StrEnum):
    """What stands there, in words."""

    NOTHING = "nothing"
    UNFINISHED = "an unfinished export"
    FINISHED = "a finished export"


def state_of(root: Place) -> State:
    """What stands at root.

    Raises:
        ExportError: if it holds something that is not ours, or cannot be read.
    """
    if isinstance(root, Bucket):
        names = sorted({name.partition("/")[0] for name in root.list()})
    else:
        names = _names_in(root)
    if not names:
        return State.NOTHING
    if MANIFEST in names and _is_ours(root / MANIFEST):
        return State.FINISHED
    if WORK in names and MANIFEST not in names:
        return State.UNFINISHED
    held = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    parts = {f"{name}.part" for name in (*OWN_FILES, MANIFEST)}
    if parts.union(OWN_FOLDERS, OWN_FILES).issuperset(names):
        raise ExportError(
            f"--out {root} holds what may be the remains of an export whose {WORK} or {MANIFEST} "
            f"is gone ({held}); delete them if they are, or give another folder"
        )
    raise ExportError(f"--out {root} holds something else ({held}); give another folder")


def _names_in(root: Path) -> list[str]:
    """What a folder holds; nothing where there is none.

    Raises:
        ExportError: if it is none, or cannot be read.
    """
    if root.is_symlink() and not root.exists():
        raise ExportError(f"--out {root} is a link to nothing")
    try:
        return sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        if not root.exists():  # it is below a file, which is said where it cannot be made
            return []
        raise ExportError(f"--out {root} is a file; give a folder") from error
    except OSError as error:
        raise ExportError(f"--out {root} could not be read: {error.strerror}") from error


def check_claim(root: Place, *, overwrite: bool) -> State:
    """Whether root may be written to; returns what stands there.

    Raises:
        ExportError: if root holds something that is not ours, or a finished export and not
            `overwrite`; or if it takes nothing.
    """
    if isinstance(root, Bucket):
        root.check_writable()
    state = state_of(root)
    if state is State.FINISHED and not overwrite:
        raise ExportError(
            f"--out {root} holds a finished export; give another folder, "
            "or --overwrite to replace it"
        )
    return state


def _is_ours(manifest: Place) -> bool:
    """Whether a manifest.json is the start of one of ours; its version may be another."""
    try:
        file = open_regular(manifest)
    except OSError:
        return False
    except ExportError:
        if isinstance(manifest, Bucket):  # which is there: only reading it failed
            raise
        return False
    with file:
        return f'"format": "{FORMAT}"'.encode() in file.read(200)
