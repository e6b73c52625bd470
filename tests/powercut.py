"""What a power cut may leave of a stream of disk operations: what was synced, and perhaps more.

A file's bytes are certain once it was synced, a folder's names once the folder was; of everything
since then any part may have reached the disk.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class File:
    data: bytes = b""
    synced: bytes = b""


@dataclass
class Folder:
    names: "dict[str, File | Folder]" = field(default_factory=dict)
    synced: "dict[str, File | Folder]" = field(default_factory=dict)


def replay(operations: list[tuple[Any, ...]], base: Path) -> Folder:
    """The folder at `base` after operations below it, from an empty one."""
    root = Folder()

    def find(path: str) -> Any:
        node: Any = root
        for part in Path(path).relative_to(base).parts:
            node = node.names[part]
        return node

    for name, path, *rest in operations:
        own = Path(path).name
        above: Any = find(str(Path(path).parent)) if Path(path) != base else root
        if name == "make_folder":
            above.names[own] = Folder()
        elif name == "create":
            above.names.setdefault(own, File()).data = b""
        elif name == "open_end":
            above.names.setdefault(own, File())
        elif name == "write":
            above.names[own].data += rest[0]
        elif name == "truncate":
            above.names[own].data = above.names[own].data[: rest[0]]
        elif name == "sync":
            above.names[own].synced = above.names[own].data
        elif name == "sync_folder":
            folder = find(path)
            folder.synced = dict(folder.names)
        elif name == "rename":
            above.names[Path(rest[0]).name] = above.names.pop(own)
        elif name in ("remove", "remove_folder"):
            above.names.pop(own, None)  # the lock is none of the operations
        else:
            raise ValueError(name)
    return root


def leave(folder: Folder, path: Path, chance: random.Random | None) -> None:
    """Write to path what is left of a folder: what was synced and, by chance, parts of the rest."""
    path.mkdir()
    for name in sorted({*folder.names, *folder.synced}):
        node = folder.synced.get(name)
        if chance and chance.random() < 0.5:
            node = folder.names.get(name)
        if isinstance(node, Folder):
            leave(node, path / name, chance)
        elif node is not None:
            (path / name).write_bytes(_left_of(node, chance))


def _left_of(file: File, chance: random.Random | None) -> bytes:
    """The bytes that are left of a file: new ones may be missing, or be zeros."""
    if chance is None or not file.data.startswith(file.synced):
        return file.synced
    new = file.data[len(file.synced) :]
    size = chance.randint(0, len(new))
    kept = chance.randint(0, size)
    return file.synced + new[:kept] + bytes(size - kept)
