"""docs/scale.md and the job files beside it: their commands exist, and do what is said."""

import os
import re
import shlex
import signal
import subprocess
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from benchmarks.schedule import parsed, report
from tests.helpers import ROOT

DOCS = ROOT / "docs"
SBATCH = DOCS / "slurm" / "qkvmill.sbatch"
PAGE = (DOCS / "scale.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
RUN = (DOCS / "cli.md").read_text("utf-8").partition("## qkvmill run")[2].partition("\n## ")[0]
KNOWN = {*re.findall(r"--[a-z][a-z0-9-]*", RUN), "--scratch"}
RAYJOB: Any = yaml.safe_load((DOCS / "kuberay" / "qkvmill.yaml").read_text("utf-8"))
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


def shell_lines(text: str) -> list[str]:
    """Commands with continued lines joined and comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def options(command: str) -> set[str]:
    """The long options of a command."""
    return {word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")}


def test_what_the_page_shows_is_what_the_script_prints() -> None:
    shown = 0
    for (language, block), (_, output) in pairwise(BLOCKS):
        if language == "sh" and block.startswith("python benchmarks/schedule.py"):
            (line,) = shell_lines(block)
            assert output == report(parsed(shlex.split(line)[2:])) + "\n", line
            shown += 1
    assert shown == 2


def test_the_commands_of_the_page_have_options_that_exist() -> None:
    lines = [line for language, block in BLOCKS if language == "sh" for line in shell_lines(block)]
    jobs = [line for line in lines if line.startswith(("qkvmill run", "sbatch"))]
    assert len(jobs) == 2
    for line in jobs:
        ours = line.partition("qkvmill.sbatch")[2] or line
        assert options(ours) <= KNOWN, line
    assert set(re.findall(r"(?<=`)--(?:out|artifact|engine)\b", PAGE)) <= KNOWN


def test_every_file_that_the_page_names_is_there() -> None:
    for name in re.findall(r"\b(?:docs|benchmarks)/[\w/.]+", PAGE):
        assert (ROOT / name.rstrip(".")).is_file(), name


def test_the_job_of_slurm_gives_options_that_exist() -> None:
    text = SBATCH.read_text("utf-8")
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    (command,) = [line for line in shell_lines(text) if line.startswith("qkvmill run")]
    assert options(command.rstrip("&")) == {"--engine", "--ray-address"}
    assert '"$@"' in command


STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" != show ] || printf "%s\\n" $NODES',
    "srun": 'echo "srun $*" >> "$CALLS"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": "exec /bin/sleep 60",
    "rm": ":",
    "sleep": "exec /bin/sleep 0.05",
    "python3": """[ "$1" != -c ] || exec echo token
case $(grep -c "ray start" "$CALLS") in  # else it counts nodes
    0) echo 0 ;;
    1) echo 1 ;;
    *) echo "$ARRIVED" ;;
esac""",
    "qkvmill": """echo "qkvmill $*" >> "$CALLS"
trap 'kill $!; exit 143' TERM
/bin/sleep "${WORK:-0}" &
touch "$CALLS.begun"
wait
exit ${STATUS:-0}""",
}
"""What the job calls, as scripts of bash."""


class Slurm:
    """A Slurm of stubs that runs tasks where it is asked, and notes every call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        for name, body in STUBS.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)

    def start(self, script: Path = SBATCH, **environment: str) -> "subprocess.Popen[str]":
        own = {
            "PATH": f"{self.folder}:{os.environ['PATH']}", "CALLS": str(self.calls),
            "NODES": "first second third", "ARRIVED": "3", "SLURM_JOB_NODELIST": "nodes",
            "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(script), "my corpus", "--out", "out"], text=True,
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def signal_job(self, script: "subprocess.Popen[str]", number: int) -> None:
        deadline = time.monotonic() + 20
        while not Path(f"{self.calls}.begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        script.send_signal(number)

    def called(self, program: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(program)]


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def ended(script: "subprocess.Popen[str]") -> tuple[int, str]:
    """The status and what was said on standard error, once nothing that it started holds it."""
    _, errors = script.communicate(timeout=20)
    return script.returncode, errors


@pytest.mark.parametrize("status", [0, 1])
def test_slurm_starts_ray_on_all_nodes_and_ends_as_the_job_does(slurm: Slurm, status: int) -> None:
    assert ended(slurm.start(STATUS=str(status))) == (status, "")
    head, others, cleaning = slurm.called("srun")
    assert "--nodes=1 --ntasks=1 --nodelist=first ray start" in head
    assert "--head --port=6379 --num-cpus=3" in head
    assert "--nodes=2 --ntasks=2 --exclude=first ray start" in others
    assert "--address=first:6379 --num-cpus=4" in others
    assert cleaning.endswith("rm -rf -- /tmp/ray-7")
    job = "qkvmill run my corpus --out out --engine ray --ray-address first:6379"
    assert slurm.called("qkvmill") == [job]
    assert slurm.called("scontrol") == ["scontrol show hostnames nodes"]


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_queues_the_job_again_only_at_the_time_limit(
    slurm: Slurm, number: int, again: bool
) -> None:
    script = slurm.start(WORK="30")
    slurm.signal_job(script, number)
    assert ended(script)[0] == 143
    assert ("scontrol requeue 7" in slurm.called("scontrol")) is again


def test_slurm_says_how_many_nodes_are_missing(slurm: Slurm, tmp_path: Path) -> None:
    hasty = tmp_path / "hasty.sbatch"
    text = SBATCH.read_text("utf-8")
    assert "patience=600" in text
    hasty.write_text(text.replace("patience=600", "patience=3"))
    status, errors = ended(slurm.start(script=hasty, ARRIVED="2"))
    assert status == 1
    assert errors == "Error: 2 of 3 nodes joined within 3 s; see /tmp/ray-7 there\n"
    assert slurm.called("qkvmill") == []


def test_the_job_of_kubernetes_is_a_ray_job_whose_options_exist() -> None:
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = RAYJOB["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["qkvmill", "run"]
    assert options(spec["entrypoint"]) <= KNOWN
    assert words[-4:] == ["--engine", "ray", "--ray-address", "auto"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0


def test_the_cluster_of_kubernetes_has_the_pinned_ray_and_no_worker_beside_the_driver() -> None:
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == PINNED["ray"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    for group in (head, *workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == "REGISTRY/qkvmill:TAG"
        assert container["envFrom"] == [{"secretRef": {"name": "qkvmill-bucket"}}]
        mounted = [mount["name"] for mount in container["volumeMounts"]]
        assert mounted == [volume["name"] for volume in group["template"]["spec"]["volumes"]]


def test_the_image_has_extras_that_exist_and_pinned_versions() -> None:
    text = (DOCS / "kuberay" / "Dockerfile").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (named,) = re.findall(r"/qkvmill\[([\w,]+)\]", text)
    assert set(named.split(",")) <= set(extras["optional-dependencies"])
    assert "-c /qkvmill/constraints.txt" in text
