import subprocess

from tests.helpers import ROOT, run_python


def test_inputs_are_opened_without_torch() -> None:
    code = "import sys, jobs.inputs.opening; sys.exit('torch' in sys.modules)"
    assert subprocess.run(run_python(code), cwd=ROOT, check=False).returncode == 0
