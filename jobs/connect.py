"""The connection of a job to Ray, and what Ray says, in a line each."""

import io
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a job tells nobody that it runs

import ray
from ray import exceptions

from jobs.config import JobConfig
from jobs.errors import ClusterError
from jobs.progress import Reporter
from jobs.stopping import SIGNALS, StoppedError
from jobs.tokenizer import VOCABULARIES

CONNECT_SECONDS = 10.0
PACKAGES = ("jobs", "exporters", "kernels")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
MOST_SAID = 200  # characters of what Ray says


def connect(config: JobConfig, reporter: Reporter) -> None:
    """Connect to the cluster at --ray-address, or start one on this machine.

    Raises:
        ClusterError: if there is none, or it has other versions of Python or Ray.
        StoppedError: if a signal came meanwhile.
    """
    address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    options: dict[str, Any] = {}
    environment: dict[str, Any] = {"py_modules": [str(place) for place in _code()]}
    if " " in sys.executable:  # which Ray gives to a shell as it is
        environment["py_executable"] = shlex.quote(sys.executable)
    if address == "local":
        cores = len(os.sched_getaffinity(0))
        options = {"num_cpus": config.workers or cores, "include_dashboard": False}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            logging_level="ERROR",
            **options,
        )
    except SystemExit as error:  # what Ray makes of SIGTERM meanwhile
        raise StoppedError(signal.SIGTERM) from error
    except Exception as error:  # Ray raises bare ones too
        raise ClusterError(
            f"no Ray cluster could be used at --ray-address {address}: {first_line(error)}; start "
            "one with ray start --head, or leave the option out for one on this machine alone"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
    where = "on this machine" if address == "local" else f"at {address}"
    reporter.note(f"Ray {ray.__version__} {where}: {nodes} nodes, {cpus} CPUs, {gpus} GPUs")


def _check_address(address: str) -> None:
    """Raise ClusterError if nothing listens at HOST:PORT, for which Ray itself waits for long."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ClusterError(
            f"--ray-address {address!r} is not auto or HOST:PORT, such as ray start --head prints; "
            "the job itself runs on a node of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster is at --ray-address {address}: {error}; start one with ray start "
            "--head, or leave the option out for one on this machine alone"
        ) from error


def _code() -> list[Path]:
    """The folders of our packages and of the vocabularies, from a checkout or as installed."""
    root = Path(__file__).resolve().parent.parent
    return [*(root / name for name in PACKAGES), VOCABULARIES.parent]


class RaySays(io.TextIOBase):
    """Takes what Ray prints in between, on a standard output that is for the result: as notes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def write(self, text: str) -> int:
        for line in text.splitlines():
            said = ESCAPES.sub("", line).replace("(raylet)", "").strip()
            if said:
                self._note(f"Ray: {said.partition('. ')[0][:MOST_SAID]}")
        return len(text)


def first_line(error: BaseException) -> str:
    """The first line of what an error of Ray says, which may go on for pages."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """The last line, which names the cause where the first ones are a traceback."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    lines = [line.strip().rstrip(".:") for line in ESCAPES.sub("", str(error)).splitlines()]
    return [line[:MOST_SAID] for line in lines if line] or [type(error).__name__]


def cluster_error(error: exceptions.RayError) -> ClusterError:
    """What Ray itself could not do, as an error of ours."""
    said = f"{type(error).__name__}: {first_line(error)}"
    return ClusterError(f"Ray could not go on: {said}; the same command resumes")
