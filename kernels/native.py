"""Compiles a C file of this package with the machine's compiler, once, and runs what it made.

What the compiler made is kept in the user's cache, as Triton keeps its kernels.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-shared", "-fPIC")
ARCHITECTURES = {"AVX2": ("-march=x86-64-v3",), "AVX512": ("-march=x86-64-v4",)}
"""torch's name for what this CPU can do -> what the compiler may use."""
LIBRARIES = ("-lm",)
COMPILE_SECONDS = 60
OPENMP = "GOMP_parallel"  # what torch's OpenMP, libgomp or one like it, calls a parallel region

Run = Callable[[ctypes.c_void_p], None]
"""`void run(void *job)` of a C file: does parts of a job until all are taken."""

_loading = Lock()


def load(source: Path, *defines: str) -> tuple[Run | None, str]:
    """The function that a C file makes with some -D, and what compiled it; or None, and why.

    The compiler is what CC names, else the first of COMPILERS.
    """
    with _loading:
        return _load(source, defines, os.environ.get("CC", ""))


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


def address(tensor: Tensor) -> int:
    """Where the values of a tensor lie, one after the other.

    Raises:
        ValueError: if they do not, or are no float32 or int32.
    """
    if not tensor.is_contiguous() or tensor.dtype not in (torch.float32, torch.int32):
        raise ValueError(f"{tensor.dtype} with strides {tensor.stride()} cannot be read from C")
    return tensor.data_ptr()


@cache
def _load(source: Path, defines: tuple[str, ...], named: str) -> tuple[Run | None, str]:
    command = shlex.split(named) or [name for name in COMPILERS if shutil.which(name)][:1]
    if not command:
        return None, f"there is no C compiler, neither {', '.join(COMPILERS)} nor one that CC names"
    program = shutil.which(command[0])
    if program is None:
        return None, f"CC names {command[0]!r}, which is no program"
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability(), ())
    flags = (*command[1:], *FLAGS, *architecture, *defines)
    try:
        status = os.stat(program)
        made_by = (os.path.realpath(program), status.st_size, status.st_mtime_ns, flags)
        key = hashlib.sha256(repr(made_by).encode() + source.read_bytes()).hexdigest()[:20]
        folder = _cache()
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="qkvmill-") as place:
                return _compile(program, flags, source, Path(place, "library.so")), program
        path = folder / f"{source.stem}-{key}.so"
        try:
            return _open(path), program
        except OSError:  # it is not there yet, or not whole
            return _compile(program, flags, source, path), program
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or "it says nothing"
        return None, f"{program} cannot compile {source.name}: {said.splitlines()[0]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{source.name} could not be compiled by {program}: {error}"


def _compile(program: str, flags: tuple[str, ...], source: Path, path: Path) -> Run:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    command = [program, *flags, str(source), "-o", str(part), *LIBRARIES]
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=COMPILE_SECONDS,
        )  # fmt: skip
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return _open(path)


def _open(path: Path) -> Run:
    run = ctypes.CDLL(str(path)).run
    run.argtypes, run.restype = (ctypes.c_void_p,), None
    return run


def _cache() -> Path | None:
    """The folder of this user for what is compiled; None where others could write to it, too."""
    try:
        above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(above, "qkvmill")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    # Whoever could write there could have anything run here.
    safe = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return folder if safe and os.access(folder, os.W_OK | os.X_OK) else None
