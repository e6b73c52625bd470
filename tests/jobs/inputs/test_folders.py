import subprocess

from exporters import manifest
from jobs.inputs import folders
from tests.helpers import ROOT, run_python


def test_the_manifest_of_an_export_is_known_by_its_name() -> None:
    assert manifest.MANIFEST == folders.MANIFEST


def test_inputs_are_opened_without_torch() -> None:
    code = "import sys, jobs.inputs.opening; sys.exit('torch' in sys.modules)"
    assert subprocess.run(run_python(code), cwd=ROOT, check=False).returncode == 0
