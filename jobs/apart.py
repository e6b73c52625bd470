"""Inputs in the folder of the export, whose files are replaced: refused before any work."""

import os
from pathlib import Path

from jobs.config import JobConfig
from jobs.errors import ConfigError


def check_apart(config: JobConfig) -> None:
    """Raise ConfigError if the corpus or --weights lie in --out, where links lead too."""
    weights = [("--weights", config.weights)] if config.weights is not None else []
    for name, path in [*(("the corpus", path) for path in config.corpus), *weights]:
        if lies_in(path, config.out):
            raise ConfigError(
                f"{name} {path} lies in --out {config.out}, whose files are replaced; "
                "give another folder"
            )


def lies_in(path: Path, folder: Path) -> bool:
    """Whether path is folder or something in it, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
