"""Compiles a C file of this package with the machine's compiler and runs what it made.

What the compiler made is kept in the user's cache, as Triton keeps its kernels.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

log = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-fast-math", "-shared", "-fPIC")
ARCHITECTURES = {
    "AVX2": ("-mavx2",),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
"""torch's name for what this CPU can do -> what the compiler may use, which torch looked for."""
COMPILE_SECONDS = 60
OPENMP = "GOMP_parallel"  # what torch's OpenMP, libgomp or one like it, calls a parallel region

Run = Callable[[ctypes.c_void_p], None]
"""`void run(void *job)` of a C file: does parts of a job until all are taken."""

_loaded: dict[tuple[Path, tuple[str, ...], str], tuple[Run | None, str]] = {}
_loading = Lock()


def load(source: Path, *defines: str) -> tuple[Run | None, str]:
    """The function that a C file makes with some -D, and what compiled it; or None, and why.

    The compiler is what CC names, else the first of COMPILERS. What CC has from its first option on
    is left out: it could change what is computed.
    """
    named = os.environ.get("CC", "")
    key = (source, defines, named)
    if key not in _loaded:
        with _loading:
            if key not in _loaded:
                _loaded[key] = _load(source, defines, named)
                run, reason = _loaded[key]
                log.info("%s %s: %s", source.name, "is used" if run else "is not used", reason)
    return _loaded[key]


def _renew_lock() -> None:
    """In a child whose parent was compiling in another thread, nobody would open the lock."""
    global _loading
    _loading = Lock()


os.register_at_fork(after_in_child=_renew_lock)


def by_threads(run: Run, job: ctypes.Structure, parts: int) -> None:
    """Have threads run a job of so many parts, as many as torch may use.

    They are those of torch's OpenMP, where it has its entry point: since they wait in a loop for a
    while after each operation of torch, they would keep other threads from the CPUs.
    """
    threads = min(torch.get_num_threads(), parts)
    place = ctypes.c_void_p(ctypes.addressof(job))
    if threads <= 1:
        run(place)
        return
    parallel = getattr(ctypes.CDLL(None), OPENMP, None)
    if parallel is None:
        with ThreadPoolExecutor(threads, "run") as pool:
            list(pool.map(run, [place] * threads))
        return
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    parallel(run, place, threads, 0)


def address(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Where the values of a tensor lie, one after the other.

    Raises:
        ValueError: if they do not, are of another dtype, or do not begin where C may read one.
    """
    place = tensor.data_ptr()
    if tensor.dtype != dtype or not tensor.is_contiguous() or place % dtype.itemsize:
        raise ValueError(
            f"{tensor.dtype} with strides {tensor.stride()} at {place:#x} cannot be read from C"
        )
    return place


def _load(source: Path, defines: tuple[str, ...], named: str) -> tuple[Run | None, str]:
    try:
        words = list(takewhile(lambda word: not word.startswith("-"), shlex.split(named)))
    except ValueError as error:
        return None, f"CC is {named!r}, which is no command: {error}"
    command = words or [name for name in COMPILERS if shutil.which(name)][:1]
    if not command:
        return None, f"there is no C compiler, neither {', '.join(COMPILERS)} nor one that CC names"
    program = shutil.which(command[0])
    if program is None:
        return None, f"CC names {command[0]!r}, which is no program"
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability(), ())
    command = [program, *command[1:], *FLAGS, *architecture, *defines]
    try:
        status = os.stat(program)
        made_by = (os.path.realpath(program), status.st_size, status.st_mtime_ns, command)
        key = hashlib.sha256(repr(made_by).encode() + source.read_bytes()).hexdigest()[:20]
        folder = _cache()
        if folder is not None:
            try:
                return _kept(folder, f"{source.stem}-{key}", source, command), program
            except OSError as error:  # a full disk, or one from which nothing may be run
                log.info("%s cannot be used: %s", folder, error)
        with tempfile.TemporaryDirectory(prefix="qkvmill-") as place:
            return _open(_compile(source, command, Path(place))), program
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines() or ["it says nothing"]
        said = next((line for line in lines if "error" in line), lines[0])
        return None, f"{program} cannot compile {source.name}: {said}"
    except (OSError, AttributeError, subprocess.TimeoutExpired) as error:
        return None, f"{source.name} could not be compiled by {program}: {error}"


def _kept(folder: Path, stem: str, source: Path, command: list[str]) -> Run:
    """The library that a folder holds, or which is made and kept there.

    Its name ends with its hash, for half of one, which a crash or a full disk may leave, would end
    the process that runs it.
    """
    for path in folder.glob(f"{stem}-*.so"):
        if _is_ours(path) and path.stem == f"{stem}-{_hash(path)}":
            return _open(path)
    with tempfile.TemporaryDirectory(prefix=f"{stem}-", dir=folder) as place:
        made = _compile(source, command, Path(place))
        path = folder / f"{stem}-{_hash(made)}.so"
        made.chmod(0o700)
        os.replace(made, path)
    return _open(path)


def _compile(source: Path, command: list[str], folder: Path) -> Path:
    made = folder / "library.so"
    subprocess.run(
        [*command, str(source), "-o", str(made)],
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=COMPILE_SECONDS,
        env={**os.environ, "LC_ALL": "C"},
    )
    return made


def _open(path: Path) -> Run:
    run = ctypes.CDLL(str(path)).run
    run.argtypes, run.restype = (ctypes.c_void_p,), None
    return run


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


def _cache() -> Path | None:
    """The folder of this user for what is compiled; None where that is not theirs alone."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkvmill"
        there = next(path for path in folder.absolute().parents if path.exists())
        # Under sudo, root would make a folder of its own in somebody else's home.
        if folder.exists() or os.geteuid() != 0 or there.stat().st_uid == 0:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_ours(folder):
                return folder
        log.info("%s is not this user's alone", folder)
    except (OSError, RuntimeError) as error:
        log.info("there is no cache: %s", error)
    return None


def _is_ours(path: Path) -> bool:
    """Whether nobody else may write there, who could have anything run here."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
