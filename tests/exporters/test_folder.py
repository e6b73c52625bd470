import errno
import hashlib
import os
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporters import disk
from exporters.errors import ExportError
from exporters.files import whole_file
from exporters.folder import Work, claim, claimed, release, tidy
from exporters.journal import start_journal
from exporters.kept import check_kept, discard, start_over
from exporters.manifest import FileEntry
from exporters.space import check_space, readable
from exporters.state import State, check_claim
from exporters.strays import HOLDER, bytes_at

JOB = {"options": {"seed": 0, "dtype": "float32"}, "software": {"torch": "2.13.0"}}


def finish(work: Work, name: str, data: bytes = b"data") -> None:
    """Write a file and note it in the journal."""
    with whole_file(work.root, name) as file:
        file.write(data)
    entry = FileEntry(
        name=name, kind="windows", bytes=len(data), sha256=hashlib.sha256(data).hexdigest(),
        first=0, count=1, tensors={},
    )  # fmt: skip
    work.journal.add_file(entry)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def kept_after(work: Work) -> list[str]:
    """What the next claim keeps."""
    work.lock.release()
    again = claim(work.root, JOB, overwrite=False)
    check_kept(again, lambda _: None)
    return sorted(again.journal.files)


def test_a_new_folder_is_claimed_and_released(tmp_path: Path) -> None:
    root = tmp_path / "deep/out"
    work = claim(root, JOB, overwrite=False)
    assert os.listdir(root) == [".work"]
    release(work)
    assert os.listdir(root) == []


def test_a_folder_that_another_job_writes_is_refused_and_the_job_is_named(tmp_path: Path) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    holder = f"is being written by process {os.getpid()} on {socket.gethostname()} since 20"
    for overwrite in (True, False):
        with pytest.raises(ExportError, match=holder):
            claim(tmp_path, JOB, overwrite=overwrite)
    release(work)
    claim(tmp_path, JOB, overwrite=False)


def test_a_job_that_has_only_just_taken_the_folder_is_given_time_to_say_who_it_is(
    tmp_path: Path,
) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    said = (tmp_path / HOLDER).read_bytes()
    (tmp_path / HOLDER).write_bytes(b"")
    later = threading.Timer(0.3, (tmp_path / HOLDER).write_bytes, (said,))
    later.start()
    with pytest.raises(ExportError, match=f"is being written by process {os.getpid()} on "):
        claim(tmp_path, JOB, overwrite=False)
    later.join()
    release(work)


def test_what_the_journal_names_is_kept_and_strays_go(tmp_path: Path) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    finish(work, "shards/a.safetensors")
    finish(work, "weights.safetensors")
    for stray in ("shards/b.safetensors", "shards/c.part", "run.json", ".work/tables.safetensors"):
        (tmp_path / stray).write_bytes(b"stray")
    (tmp_path / "tokens").mkdir()
    assert check_claim(tmp_path, overwrite=False) is State.UNFINISHED
    assert kept_after(work) == ["shards/a.safetensors", "weights.safetensors"]
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    own = [".work/holder", ".work/journal", ".work/lock"]
    assert found == [*own, "shards/a.safetensors", "weights.safetensors"]
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(b"dat4"), id="flipped"),
        pytest.param(lambda path: path.write_bytes(b"dat"), id="cut"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: (path.rename("elsewhere"), path.symlink_to("x")), id="link"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="folder"),
        pytest.param(fifo, id="fifo"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to(path)), id="circle"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_not_kept(
    tmp_path: Path, spoil: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work = claim(tmp_path / "out", JOB, overwrite=False)
    finish(work, "shards/a.safetensors")
    finish(work, "shards/b.safetensors")
    spoil(tmp_path / "out/shards/a.safetensors")
    assert kept_after(work) == ["shards/b.safetensors"]
    assert os.listdir(tmp_path / "out/shards") == ["b.safetensors"]


def test_another_job_is_refused_with_what_differs_until_it_may_overwrite(tmp_path: Path) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    finish(work, "shards/a.safetensors")
    work.lock.release()
    other = {"options": {"seed": 1, "dtype": "float32"}, "software": {"torch": "2.11.0"}}
    differing = r'options.seed was 0, now 1; software.torch was "2.13.0", now "2.11.0".*--overwrite'
    with pytest.raises(ExportError, match=differing):
        claim(tmp_path, other, overwrite=False)
    assert (tmp_path / "shards/a.safetensors").exists()
    assert claim(tmp_path, other, overwrite=True).journal.files == {}
    assert os.listdir(tmp_path) == [".work"]


def test_overwriting_goes_on_with_a_job_that_was_overwriting(tmp_path: Path) -> None:
    work = claim(tmp_path, JOB, overwrite=True)
    finish(work, "shards/a.safetensors")
    work.lock.release()
    assert list(claim(tmp_path, JOB, overwrite=True).journal.files) == ["shards/a.safetensors"]


def test_a_failure_keeps_what_the_journal_names_and_else_leaves_nothing(tmp_path: Path) -> None:
    def fail(names: list[str]) -> None:
        with claimed(tmp_path / "out", JOB, overwrite=False) as work:
            for name in names:
                finish(work, name)
            raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        fail([])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="no"):
        fail(["shards/a.safetensors"])
    work = claim(tmp_path / "out", JOB, overwrite=False)
    assert list(work.journal.files) == ["shards/a.safetensors"]


def test_folders_that_a_failed_job_made_or_emptied_go_and_others_stay(
    tmp_path: Path, export: Path
) -> None:
    def fail(root: Path) -> None:
        with claimed(root, JOB, overwrite=True) as work:
            finish(work, "shards/a.safetensors")
            discard(work)
            raise ExportError("no")

    def fails(root: Path) -> None:
        with pytest.raises(ExportError, match="no"):
            fail(root)

    (tmp_path / "empty").mkdir()
    for name in ("deep/er/out", "empty", "empty/new/out"):
        fails(tmp_path / name)
    fails(export)
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []
    (tmp_path / "mine").mkdir()
    work = claim(tmp_path / "mine/out", JOB, overwrite=False)
    (tmp_path / "mine/out/notes.md").write_text("mine")
    work.lock.release()
    fails(tmp_path / "mine/out")
    assert os.listdir(tmp_path / "mine/out") == ["notes.md"]


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("place", ["out", "out/.work"])
def test_a_folder_that_was_moved_is_no_more_written_to_and_the_next_jobs_is_left_alone(
    tmp_path: Path, place: str, done: bool
) -> None:
    out = tmp_path / "out"
    later: list[Work] = []

    def move() -> None:
        with claimed(out, JOB, overwrite=False) as work:
            if done:
                finish(work, "weights.safetensors")
            (tmp_path / place).rename(tmp_path / "old")
            if place != "out" and done:
                (out / "weights.safetensors").unlink()
            # By another name, since a process knows its folders by theirs.
            out.mkdir(exist_ok=True)
            (tmp_path / "link").symlink_to(out)
            later.append(claim(tmp_path / "link", JOB, overwrite=False))
            finish(later[0], "shards/b.safetensors")
            finish(work, "shards/a.safetensors")

    with pytest.raises(ExportError, match=f"--out {out} was moved, removed or replaced while"):
        move()
    assert kept_after(later[0]) == ["shards/b.safetensors"]
    assert sorted(os.listdir(out)) == [".work", "shards"]


def test_nothing_is_made_where_a_folder_was_moved_away(tmp_path: Path) -> None:
    def move() -> None:
        with claimed(tmp_path / "out", JOB, overwrite=False) as work:
            (tmp_path / "out").rename(tmp_path / "old")
            finish(work, "shards/a.safetensors")

    with pytest.raises(ExportError, match="was moved, removed or replaced while the job ran"):
        move()
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == [".work"]
    release(claim(tmp_path / "out", JOB, overwrite=False))


@pytest.mark.parametrize("limit", [0, 60, 200])
def test_a_claim_that_cannot_be_written_leaves_nothing(tmp_path: Path, limit: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ExportError, match="could not be written: File too large"):
            claim(tmp_path / "deep/out", {"long": "x" * 999}, overwrite=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("at", ["make_folder", "create"])
def test_what_another_job_removes_while_a_folder_is_claimed_is_said_to_be_its(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raced(path: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(disk, at, raced)
    with pytest.raises(ExportError, match="is being claimed or given back by another job"):
        claim(tmp_path, JOB, overwrite=False)


def test_a_work_folder_that_another_job_removed_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raced(path: Path) -> None:
        path.rmdir()
        path.rmdir()

    work = claim(tmp_path, JOB, overwrite=False)
    monkeypatch.setattr(disk, "remove_folder", raced)
    release(work)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    finish(work, "shards/a.safetensors")

    def refuse(path: Path) -> Iterator[bytes]:
        raise OSError(number, os.strerror(number), str(path))
        yield b""

    with monkeypatch.context() as patched:
        patched.setattr("exporters.kept.blocks", refuse)
        with pytest.raises(ExportError, match=r"a\.safetensors could not be read: .* is kept"):
            check_kept(work, lambda _: None)
    assert kept_after(work) == ["shards/a.safetensors"]


def test_a_folder_that_cannot_be_listed_is_said_to_be_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    (tmp_path / "shards").mkdir()

    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", refuse)
        with pytest.raises(ExportError, match="shards could not be read: Permission denied"):
            check_kept(work, lambda _: None)


def test_starting_over_forgets_what_is_done_on_disk_too(tmp_path: Path) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    finish(work, "shards/a.safetensors")
    work.journal.add_note("method", "tables")
    start_over(work)
    assert os.listdir(tmp_path) == [".work"]
    work.lock.release()
    again = claim(tmp_path, JOB, overwrite=False)
    assert (again.journal.files, again.journal.notes) == ({}, {})


def test_an_error_of_the_progress_does_not_make_a_file_damaged(tmp_path: Path) -> None:
    work = claim(tmp_path, JOB, overwrite=False)
    finish(work, "shards/a.safetensors")

    def broken(read: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        check_kept(work, broken)
    assert kept_after(work) == ["shards/a.safetensors"]


def test_a_finished_export_needs_overwrite(export: Path) -> None:
    with pytest.raises(ExportError, match="--overwrite"):
        claim(export, JOB, overwrite=False)
    assert check_claim(export, overwrite=True) is State.FINISHED
    claim(export, JOB, overwrite=True)
    assert os.listdir(export) == [".work"]


@pytest.mark.parametrize("journal", ["whole", "unreadable", "none"])
def test_a_commit_that_was_cut_short_is_a_finished_export_and_is_tidied(
    export: Path, journal: str
) -> None:
    (export / ".work").mkdir()
    (export / ".work/lock").touch()
    if journal == "whole":
        start_journal(export, JOB)
    elif journal == "unreadable":
        (export / ".work/journal").write_text("x")
    with pytest.raises(ExportError, match="holds a finished export; give another folder"):
        check_claim(export, overwrite=False)
    tidy(export)
    assert not (export / ".work").exists()
    assert check_claim(export, overwrite=True) is State.FINISHED


def test_a_finished_export_is_not_tidied_through_a_link(export: Path, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else/journal").write_text("mine")
    (export / ".work").symlink_to(tmp_path / "else")
    with pytest.raises(ExportError, match=r"\.work is a link; remove it"):
        tidy(export)
    assert os.listdir(tmp_path / "else") == ["journal"]


def test_overwriting_starts_over_where_a_commit_was_cut_short(export: Path) -> None:
    (export / ".work").mkdir()
    start_journal(export, JOB).add_note("method", "tables")
    work = claim(export, JOB, overwrite=True)
    assert (work.journal.files, work.journal.notes) == ({}, {})
    assert os.listdir(export) == [".work"]


def test_a_job_that_finds_an_export_finished_leaves_nothing_beside_it(export: Path) -> None:
    before = sorted(os.listdir(export))
    with pytest.raises(ExportError, match="finished export"):
        claim(export, JOB, overwrite=False)
    assert sorted(os.listdir(export)) == before


def test_overwriting_leaves_files_that_are_not_ours(export: Path) -> None:
    (export / "notes.md").write_text("mine")
    claim(export, JOB, overwrite=True)
    assert sorted(os.listdir(export)) == [".work", "notes.md"]


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "shards/a.safetensors", "manifest.json"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_holds_something_else_is_refused_and_kept(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ExportError, match=r"holds something else|holds what may be the remains"):
        claim(tmp_path, JOB, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "{}"


def test_a_file_or_a_dead_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ExportError, match=f"--out {tmp_path / name} is a"):
            claim(tmp_path / name, JOB, overwrite=True)


def test_a_link_in_place_of_our_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.txt").write_text("mine")
    root = tmp_path / "out"
    claim(root, JOB, overwrite=False).lock.release()
    (root / "shards").symlink_to(outside)
    check_kept(claim(root, JOB, overwrite=False), lambda _: None)
    assert not (root / "shards").exists()
    assert (outside / "keep.txt").exists()


@pytest.mark.parametrize("name", ["holder", "journal", "journal.part", "tables.safetensors.part"])
def test_nothing_is_written_through_a_link_in_the_work_folder(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    (tmp_path / "out/.work").mkdir(parents=True)
    (tmp_path / f"out/.work/{name}").symlink_to(outside)
    finish(claim(tmp_path / "out", JOB, overwrite=False), "shards/a.safetensors")
    assert outside.read_text() == "mine"


def test_a_work_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.work").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match=r"out/\.work is a link"):
        claim(tmp_path / "out", JOB, overwrite=True)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("name", ["holder", "journal", "lock"])
def test_a_fifo_in_the_work_folder_is_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / ".work").mkdir()
    os.mkfifo(tmp_path / ".work" / name)
    finish(claim(tmp_path, JOB, overwrite=False), "shards/a.safetensors")


def test_space_is_checked_where_the_folder_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = shutil.disk_usage(tmp_path)

    def usage(place: Path) -> object:
        asked.append(place)
        return real._replace(free=999)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_space(tmp_path / "not/yet/there", 999)
    with pytest.raises(ExportError, match=r"needs 1\.0 kB.* has 999 bytes free"):
        check_space(tmp_path / "not/yet/there", 1000)
    check_space(tmp_path, 2998, 1999)
    with pytest.raises(ExportError, match=r"needs 1\.0 kB.*; what is finished is kept, 2\.0 kB"):
        check_space(tmp_path, 2999, 1999)
    assert set(asked) == {tmp_path}


def test_bytes_that_stand_there_already_are_counted(export: Path) -> None:
    (export / "notes.md").write_bytes(b"not ours")
    files = [path for path in export.rglob("*") if path.is_file()]
    others = {"manifest.json", "notes.md"}
    assert bytes_at(export) == sum(p.stat().st_size for p in files if p.name not in others)


def test_files_that_another_job_renames_meanwhile_are_not_counted(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = bytes_at(export)
    part = export / "tokens/tokens-00002.safetensors.part"
    part.write_bytes(b"half")
    real = os.walk

    def walk(place: Path) -> Iterator[object]:
        yield from list(real(place))
        part.unlink(missing_ok=True)

    monkeypatch.setattr(os, "walk", walk)
    assert bytes_at(export) == everything


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_949, "999.9 kB"),
     (999_950, "1.0 MB"), (512_000_000, "512.0 MB"), (3 * 10**15, "3.0 PB")],
)  # fmt: skip
def test_sizes_are_readable(count: int, expected: str) -> None:
    assert expected == readable(count)
