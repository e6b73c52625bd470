"""Standard input -> a file in the folder of an unfinished export, so that a resumed job has it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from exporters.errors import ExportError
from exporters.files import whole_file, write_all
from exporters.safefile import open_regular
from exporters.space import readable
from exporters.strays import SPOOL
from jobs.errors import CorpusError
from jobs.inputs.compression import START_BYTES, compression_of
from jobs.inputs.files import Corpus, version_of
from jobs.inputs.locations import STDIN
from jobs.inputs.remote import READ_BYTES
from jobs.inputs.stdin import gives_nothing, read_stdin

NAME = Path(SPOOL).name


def spool(
    corpus: Corpus,
    folder: Path,
    note: Callable[[str], None],
    check: Callable[[], None],
    *,
    overwrite: bool = False,
) -> Corpus:
    """The corpus with folder/"stdin" in the place of standard input, which is copied there.

    Where it was copied already, standard input has to be the same again, or empty, or a terminal.

    Args:
        folder: the folder .work of an export that is claimed.
        overwrite: take standard input that is not the same in the place of what was copied.

    Raises:
        CorpusError: if standard input is empty, cannot be read, or is not what was copied.
        ExportError: if it cannot be written.
        QkvmillError: of `check`, called at every block and while none comes.
    """
    if all(file.location != STDIN for file in corpus.files):
        return corpus
    path = folder / NAME
    try:
        if path.is_file() and not path.is_symlink():
            _compare(path, note, check, overwrite)
        else:
            _copy(path, read_stdin(check))
            note(f"standard input: {readable(path.stat().st_size)} copied to {path}")
        with open_regular(path) as stream:
            status, start = os.fstat(stream.fileno()), stream.read(START_BYTES)
    except OSError as error:
        raise ExportError(f"{path} could not be read: {error.strerror}") from error
    files = (
        replace(
            file,
            location=str(path),
            compression=compression_of(start),
            bytes=status.st_size,
            version=version_of(status),
        )
        if file.location == STDIN
        else file
        for file in corpus.files
    )
    return replace(corpus, files=tuple(files))


def _copy(path: Path, blocks: Iterator[bytes]) -> None:
    """Write blocks to a file that appears whole."""
    if not (first := next(blocks, b"")):
        raise CorpusError("standard input is empty; pipe text into the command")
    with whole_file(path.parent, path.name) as file:
        for block in chain([first], blocks):
            write_all(file, block)


def _compare(
    path: Path, note: Callable[[str], None], check: Callable[[], None], overwrite: bool
) -> None:
    """Hold standard input against what was copied of it.

    Raises:
        CorpusError: if it is other bytes, and not `overwrite`.
    """
    blocks = iter(()) if gives_nothing() else read_stdin(check)
    first = next(blocks, b"")
    if not first:
        note(f"nothing comes from standard input: going on with what was copied to {path}")
        return
    with open_regular(path) as kept:
        same, block = _common(kept, chain([first], blocks))
        if not block and not kept.read(1):
            return
        if not overwrite:
            raise CorpusError(
                f"standard input differs from what was copied to {path} (after byte {same}); give "
                "the same again, nothing to go on with the copy, or --overwrite to start over"
            )
        note(f"standard input differs from what was copied to {path}: it is copied again")
        kept.seek(0)
        _copy(path, chain(_first_bytes(kept, same), [block] if block else [], blocks))


def _common(kept: BinaryIO, blocks: Iterator[bytes]) -> tuple[int, bytes]:
    """How many bytes blocks have in common with a file, by whole blocks, and the block after."""
    same = 0
    for block in blocks:
        if kept.read(len(block)) != block:
            return same, block
        same += len(block)
    return same, b""


def _first_bytes(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        block = file.read(min(size, READ_BYTES))
        yield block
        size -= len(block)
