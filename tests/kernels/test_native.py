import ctypes
import errno
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import native
from kernels.native import by_threads, load
from tests.helpers import needs_c, run_python

SOURCE = """
#include <stdatomic.h>
struct job { _Atomic long next; long count; int *done; };
void run(void *argument) {
    struct job *job = argument;
    long at;
    while ((at = atomic_fetch_add(&job->next, 1)) < job->count) job->done[at] += STEP;
}
"""


class Job(ctypes.Structure):
    _fields_ = (
        ("next", ctypes.c_long), ("count", ctypes.c_long), ("done", ctypes.POINTER(ctypes.c_int))
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    native._loaded.clear()
    yield
    native._loaded.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "count.c"
    path.write_text(SOURCE)
    return path


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "qkvmill").iterdir())


def count(source: Path, parts: int, define: str = "-DSTEP=1") -> list[int]:
    run, reason = load(source, define)
    assert run is not None, reason
    done = (ctypes.c_int * parts)()
    by_threads(run, Job(count=parts, done=done), parts)
    return list(done)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_c
@pytest.mark.parametrize("parts", [1, 2, 1000])
def test_every_part_is_done_once(parts: int, source: Path) -> None:
    assert count(source, parts) == [1] * parts


@needs_c
def test_what_was_compiled_is_kept_for_this_user_alone(tmp_path: Path, source: Path) -> None:
    count(source, 3)
    (library,) = kept(tmp_path)
    assert library.name.startswith("count-")
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    native._loaded.clear()
    before = library.stat().st_mtime_ns
    assert count(source, 3) == [1] * 3
    assert kept(tmp_path) == [library]
    assert library.stat().st_mtime_ns == before


@needs_c
def test_another_source_define_or_compiler_is_another_library(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert count(source, 2) == [1, 1]
    assert count(source, 2, "-DSTEP=5") == [5, 5]
    monkeypatch.setenv("CC", str(script(tmp_path / "mycc", 'exec cc "$@"')))
    assert count(source, 2) == [1, 1]
    native._loaded.clear()
    source.write_text(SOURCE.replace("+= STEP", "-= STEP"))
    assert count(source, 2) == [-1, -1]
    assert len(kept(tmp_path)) == 4


@needs_c
@pytest.mark.parametrize("left", [0, 100, 4096, 12000])
def test_a_library_that_was_cut_off_is_made_again(left: int, tmp_path: Path, source: Path) -> None:
    count(source, 1)
    (library,) = kept(tmp_path)
    whole = library.read_bytes()
    library.unlink()  # this process has mapped it
    library.write_bytes(whole[:left])
    native._loaded.clear()
    assert count(source, 2) == [1] * 2
    assert [path.read_bytes() for path in kept(tmp_path)] == [whole]


@needs_c
def test_a_library_that_others_may_write_to_is_not_loaded(tmp_path: Path, source: Path) -> None:
    count(source, 1)
    (library,) = kept(tmp_path)
    library.chmod(0o777)
    native._loaded.clear()
    assert count(source, 2) == [1] * 2
    (library,) = kept(tmp_path)
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@needs_c
def test_where_the_cache_cannot_hold_it_another_folder_does(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert count(source, 2) == [1] * 2
    assert kept(tmp_path) == []


@needs_c
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_root_makes_no_folder_in_the_home_of_somebody_else(tmp_path: Path, source: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 12345, 12345)
    assert count(source, 2) == [1] * 2
    assert list((tmp_path / "cache").iterdir()) == []


@needs_c
@pytest.mark.parametrize("mode", [0o777, 0o770], ids=oct)
def test_a_cache_that_is_not_ours_alone_is_left_alone(
    mode: int, tmp_path: Path, source: Path
) -> None:
    folder = tmp_path / "cache" / "qkvmill"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert count(source, 3) == [1] * 3
    assert list(folder.iterdir()) == []


@needs_c
def test_without_a_home_it_is_compiled_all_the_same(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert count(source, 3) == [1] * 3


def test_no_compiler_is_said(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert load(source) == (
        None, "there is no C compiler, neither cc, gcc, clang nor one that CC names"
    )  # fmt: skip


def test_a_command_that_is_none_is_said(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "gcc '")
    run, reason = load(source)
    assert run is None
    assert reason == """CC is "gcc '", which is no command: No closing quotation"""


@needs_c
def test_options_of_the_compiler_that_could_change_results_are_left_out(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = script(source.parent / "mycc", f'echo "$@" > {source.parent}/told; exec cc "$@"')
    monkeypatch.setenv("CC", f"{place} -I /usr/include -ffast-math -DSTEP=7")
    assert count(source, 2) == [1, 1]
    told = (source.parent / "told").read_text().split()
    assert not {"-I", "/usr/include", "-ffast-math", "-DSTEP=7"} & set(told)
    # Linked with -ffast-math, a library has all of its process flush such numbers to 0.
    assert float(torch.tensor(1e-40) * 1) != 0


@needs_c
def test_a_command_of_two_words_is_called_as_it_is(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = script(tmp_path / "ccache", 'test "$1" = cc || exit 1; exec "$@"')
    monkeypatch.setenv("CC", f"{place} cc")
    assert count(source, 2) == [1, 1]


@pytest.mark.parametrize("name", ["no-such-compiler", "/etc", "/nowhere/cc -O1"])
def test_a_compiler_that_is_none_is_said(
    name: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", name)
    assert load(source) == (None, f"CC names {name.split()[0]!r}, which is no program")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("echo too old >&2; exit 1", "cannot compile count.c: too old", id="refuses"),
        pytest.param(
            "printf 'a.c: In function:\\na.c:1: error: wrong\\n' >&2; exit 1",
            "cannot compile count.c: a.c:1: error: wrong",
            id="names-its-error-later",
        ),
        pytest.param("exit 3", "cannot compile count.c: it says nothing", id="says-nothing"),
        pytest.param("exit 0", "No such file", id="writes-nothing"),
        pytest.param('echo no library > "${@: -1}"', "file too short", id="writes-no-library"),
        pytest.param("sleep 60", "timed out", id="takes-too-long"),
    ],
)
def test_a_compiler_that_fails_is_said(
    text: str, expected: str, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "COMPILE_SECONDS", 0.5)
    place = script(tmp_path / "mycc", text)
    place.write_text(place.read_text().replace("/bin/sh", shutil.which("bash") or ""))
    monkeypatch.setenv("CC", str(place))
    run, reason = load(source, "-DSTEP=1")
    assert run is None
    assert expected in reason
    assert str(place) in reason


def test_a_source_that_does_not_compile_is_said_with_its_first_error(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text("int run(;\n")
    run, reason = load(wrong)
    assert run is None
    assert "cannot compile wrong.c" in reason
    assert len(reason.splitlines()) == 1


@needs_c
def test_a_child_of_a_process_that_compiles_does_not_wait_for_it(
    tmp_path: Path, source: Path
) -> None:
    slow = script(tmp_path / "slow", 'sleep 3; exec cc "$@"')
    code = f"""
import os, threading, time
from pathlib import Path
from kernels.native import load
load(Path({str(source)!r}), "-DSTEP=1")
os.environ["CC"] = {str(slow)!r}
thread = threading.Thread(target=load, args=(Path({str(source)!r}), "-DSTEP=2"))
thread.start()
time.sleep(0.5)
child = os.fork()
if child == 0:
    os.environ["CC"] = ""
    load(Path({str(source)!r}), "-DSTEP=3")
    os._exit(5)
for _ in range(200):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        print(os.waitstatus_to_exitcode(status))
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
thread.join()
"""
    done = subprocess.run(run_python(code), check=True, capture_output=True, text=True)
    assert done.stdout == "5\n"


@needs_c
def test_threads_that_load_at_once_compile_once(tmp_path: Path, source: Path) -> None:
    place = script(tmp_path / "slow", f'echo >> {tmp_path}/calls; sleep 0.3; exec cc "$@"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(place))
        found: list[object] = []
        threads = [
            threading.Thread(target=lambda: found.append(load(source, "-DSTEP=1")[0]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(map(id, found))) == 1
    assert found[0] is not None
    assert (tmp_path / "calls").read_text() == "\n"
