import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.loading import loading
from tests.helpers import ROOT

LIGHT = {
    "version": ["--version"],
    "help": ["--help"],
    "help-of-run": ["run", "--help"],
    "no-such-command": ["rnu"],
    "no-such-option": ["inspect", "out", "--windw", "3"],
    "no-such-choice": ["run", "a.txt", "--out", "out", "--dtype", "float31"],
    "heads-that-do-not-divide": ["run", "a.txt", "--out", "out", "--d-model", "7", "--heads", "2"],
    "no-export": ["report", "nowhere"],
}


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", LIGHT.values(), ids=LIGHT)
def test_help_and_mistakes_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom jobs.commands.main import main\n"
        "main(sys.argv[1:])\nsys.exit('torch' in sys.modules)"
    )
    done = python(code, *arguments)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_completion_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom jobs.commands.main import main\n"
        "try:\n    main()\nfinally:\n    sys.stderr.write(str('torch' in sys.modules))"
    )
    words = {"COMP_WORDS": "qkvmill run --tok", "COMP_CWORD": "2"}
    done = python(code, _QKVMILL_COMPLETE="bash_complete", **words)
    assert done.stdout.split() == ["plain,--tokenizer", "plain,--token-dtype"]
    assert done.stderr == "False"


INTERRUPT = """\
import os, signal, sys
from jobs.loading import loading
{before}
with loading():
    os.kill(os.getpid(), signal.SIGINT)
    print("on")
"""


@pytest.mark.parametrize(
    ("before", "status", "said"),
    [("", -signal.SIGINT, ""),
     ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 0, "on\n"),
     ("handler = lambda *_: print('taken')\nsignal.signal(signal.SIGINT, handler)\n"
      "sys.modules['torch'] = sys", 0, "taken\non\n")],
    ids=["ends-the-program", "is-ignored-where-it-was", "is-taken-as-before-once-torch-is-there"],
)  # fmt: skip
def test_an_interrupt_while_torch_is_imported(before: str, status: int, said: str) -> None:
    done = python(INTERRUPT.format(before=before))
    assert (done.returncode, done.stdout, done.stderr) == (status, said, "")


COMMANDS = {
    "run": ["run", "a.txt", "--out", "out"],
    "plan": ["plan", "a.txt", "--out", "out"],
    "verify": ["verify", "out"],
    "expand": ["expand", "out", "--out", "full"],
    "inspect": ["inspect", "out"],
    "bench": ["bench"],
}
INTERRUPTED_IMPORT = """\
import os, signal, sys
from jobs.commands.main import main

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_each_command_may_be_interrupted_while_it_imports_torch(arguments: list[str]) -> None:
    done = python(INTERRUPTED_IMPORT, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_report_may_be_interrupted_while_it_imports_torch(export: Path) -> None:
    done = python(INTERRUPTED_IMPORT, "report", str(export))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_another_thread_than_the_main_one_may_import_it_too() -> None:
    code = (
        "import sys, threading\nfrom jobs.commands.main import main\n"
        "thread = threading.Thread(target=lambda: print(main(['verify', 'nowhere'])))\n"
        "thread.start()\nthread.join()"
    )
    done = python(code)
    assert done.stdout == "1\n"
    assert done.stderr.startswith("Error: nowhere ")


def test_afterwards_interrupts_and_the_collector_are_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), loading():
        assert not gc.isenabled()
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
