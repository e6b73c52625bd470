"""A model's folder as the Hugging Face hub lays it out: which file holds which tensor.

config.json and the files of tensors may not lie outside of the folder, but for what a cache of the
hub links to: in <repo>/snapshots/<revision> each file is a link to <repo>/blobs/<hash>.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from exporters.errors import ExportError, WeightsError
from exporters.layerfile import FLOATS, PICKLE_SUFFIXES
from exporters.safefile import Header, read_header
from jobs.settings import read_json

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open safetensors file: whole as `rows[:]`, or some of its rows."""

    name: str  # with its file, for messages
    shape: tuple[int, ...]
    rows: Any  # a slice of safetensors


def own_file(folder: Path, name: str) -> Path:
    """The real path of a file of the folder, whether it is there or not.

    Raises:
        WeightsError: if the name is no plain one, or links lead it out of the folder.
    """
    plain = name.isprintable() and not any(mark in name for mark in "/\\:")
    if name in ("", ".", "..") or not plain:
        raise WeightsError(f"--weights {folder}: {name!r} is no plain name of a file in the folder")
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    cached = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not target.is_relative_to(root) and not cached:
        raise WeightsError(
            f"--weights {folder}: {name} is a link that leads out of the folder; put the file there"
        )
    return target


def tensor_files(folder: Path) -> dict[str, str]:
    """Name of a tensor -> name of its file, by the one file's header or the index of several.

    Raises:
        WeightsError: if there is neither, or it is damaged.
    """
    if os.path.exists(own_file(folder, SINGLE)):
        return dict.fromkeys(_header(folder, SINGLE).tensors, SINGLE)
    if not os.path.exists(own_file(folder, INDEX)):
        raise _no_weights(folder)
    index = read_json(own_file(folder, INDEX), f"--weights {folder}: {INDEX}")
    files = index.object("weight_map").values
    for tensor, name in files.items():
        if not isinstance(name, str):
            raise WeightsError(f"{index.where}: weight_map gives no file for {tensor[:200]!r}")
    return dict(files)


@contextmanager
def open_tensors(
    folder: Path, files: Mapping[str, str], names: set[str]
) -> Iterator[dict[str, StoredTensor]]:
    """Open those files that hold the named tensors.

    Raises:
        WeightsError: if a file is missing, outside, damaged or no safetensors, or lacks a tensor,
            or a tensor is not of a float type.
    """
    stored = {}
    with ExitStack() as stack:
        for file in sorted({files[name] for name in names}):
            header = _header(folder, file)
            try:
                opened = stack.enter_context(safe_open(own_file(folder, file), framework="pt"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"--weights {folder}: {file}: {error}") from error
            for name in (name for name in names if files[name] == file):
                where = f"--weights {folder}: {file}: {name}"
                if name not in header.tensors:
                    raise WeightsError(f"{where} is not there, though {INDEX} says so")
                entry = header.tensors[name]
                if entry.dtype not in FLOATS:
                    raise WeightsError(
                        f"{where} is {entry.dtype}, not {', '.join(FLOATS)}; quantised weights are "
                        "not supported, give the model they were made from"
                    )
                stored[name] = StoredTensor(where, entry.shape, opened.get_slice(name))
        yield stored


def _header(folder: Path, name: str) -> Header:
    if Path(name).suffix in PICKLE_SUFFIXES:
        raise _pickle(folder, name)
    if not name.endswith(".safetensors"):
        raise WeightsError(f"--weights {folder}: {name!r} is no .safetensors file")
    path = own_file(folder, name)
    try:
        return read_header(path)
    except FileNotFoundError as error:
        raise WeightsError(
            f"--weights {folder}: {name} is not there; fetch the model again"
        ) from error
    except ExportError as error:
        raise WeightsError(f"--weights {error}; give a model saved as safetensors") from error
    except OSError as error:
        raise WeightsError(f"--weights {folder}: {name}: {error.strerror}") from error


def _no_weights(folder: Path) -> WeightsError:
    """The error for a folder without safetensors, which names a pickle where there is one."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return WeightsError(f"--weights {folder} could not be read: {error.strerror}")
    for name in names:
        if Path(name).suffix in PICKLE_SUFFIXES:
            return _pickle(folder, name)
    return WeightsError(f"--weights {folder} holds neither {SINGLE} nor {INDEX}")


def _pickle(folder: Path, name: str) -> WeightsError:
    return WeightsError(
        f"--weights {folder}: {name} is a pickle, which can run code when it is opened; "
        "save the model with safe_serialization=True and give that folder"
    )
