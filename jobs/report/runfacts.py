"""How an export was made, as the report shows it."""

import json
import math
from typing import Any

from exporters.bucket import Place
from exporters.files import sha256_of
from exporters.manifest import GARBLED, MANIFEST, RUN, Manifest
from exporters.safefile import open_regular, own_file
from jobs.printable import printable
from jobs.timings import Timing, held_back

MOST_HASHES = 12
MOST_RUN_BYTES = 1 << 24


def run_facts(root: Place, manifest: Manifest) -> dict[str, Any]:
    """How the export was made: its options, versions, hashes, and run.json where it is."""
    run, why = _run_json(root)
    try:
        rows = [Timing(**stage) for stage in run.get("stages", [])]
        held = held_back(rows) if rows else None
        stages = [
            {
                "name": printable(str(row.name)), "within": row.within, "node": row.node,
                "seconds": _finite(row.seconds), "share": _finite(row.share),
                "tokens": row.tokens_per_second and _finite(row.tokens_per_second),
                "bytes": row.bytes_per_second and _finite(row.bytes_per_second),
            }
            for row in rows
        ]  # fmt: skip
    except GARBLED as error:
        run, stages, held, why = {}, [], None, f"{RUN} is damaged ({type(error).__name__})."
    return {
        "run": {key: value for key, value in run.items() if key not in ("stages", "seconds")},
        "no_run": why,
        "stages": stages,
        "held_back": held,
        "manifest_sha256": sha256_of(own_file(root, MANIFEST)),
        "hashes": manifest.files[:MOST_HASHES],
        "more_hashes": len(manifest.files) - MOST_HASHES,
        "options": {name: _option(value) for name, value in manifest.job.items()},
    }


def _run_json(root: Place) -> tuple[dict[str, Any], str | None]:
    """run.json, or nothing and a sentence that says why."""
    try:
        with open_regular(own_file(root, RUN)) as file:
            text = file.read(MOST_RUN_BYTES)
        document = json.loads(text)
    except FileNotFoundError:
        return {}, f"There is no {RUN}, which tells when and how fast the export was made."
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{RUN} could not be read ({type(error).__name__})."
    return (document, None) if isinstance(document, dict) else ({}, f"{RUN} is no JSON object.")


def _finite(value: Any) -> float:
    """A number of run.json, which may hold anything; raises one of GARBLED where it is none."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no time")
    return number


def _option(value: Any) -> str:
    """An option as the command line has it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "\u2013"}[value]
    return f"{value:,}" if type(value) is int else str(value)
