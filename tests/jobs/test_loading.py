import gc
import os
import signal
import subprocess
import sys

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
    gc.unfreeze()
