"""Without a GPU the Triton kernels run in Triton's interpreter, chosen before they are imported."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Who starts tests in the background of a script has interrupts ignored, and so would the jobs that
# tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.pop("COLUMNS", None)  # in which xdist tells its processes how wide its own terminal is

from tests.helpers import small_export

LONGEST = (
    "test_faults.py", "test_cluster.py", "test_docs.py", "test_fuzz.py", "test_benchmarks.py",
    "test_s3.py", "test_page.py", "test_compiled.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of files that take minutes go first, so that no process is left with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def _exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def _compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.mktemp("compact"), "--artifact", "compact")


@pytest.fixture
def export(_exported: Path, tmp_path: Path) -> Path:
    """A small committed export of three documents in several shards, to change at will."""
    return Path(shutil.copytree(_exported, tmp_path / "export"))


@pytest.fixture
def compact(_compact: Path, tmp_path: Path) -> Path:
    """The compact export of the same job."""
    return Path(shutil.copytree(_compact, tmp_path / "compact"))


@pytest.fixture(params=[1, 2, 3], ids=lambda count: f"{count}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads torch has; a test that asks for it runs for each number."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
