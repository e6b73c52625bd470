"""Inputs in the folder of the export, whose files are replaced: refused before any work."""

import os
from pathlib import Path

from jobs.config import JobConfig
from jobs.errors import ConfigError
from jobs.inputs.files import LIST, Corpus
from jobs.inputs.locations import STDIN, is_url


def check_apart(config: JobConfig, corpus: Corpus) -> None:
    """Raise ConfigError if the corpus or --weights lie in --out, where links lead too."""
    given = [path for path in config.corpus if not path.startswith(LIST)]
    # Of what patterns and lists name; folders of a corpus leave --out out.
    folders = {os.path.dirname(file.location) for file in corpus.files if not is_url(file.location)}
    inputs = [("the corpus", path) for path in (*given, *sorted(folders))
              if path not in (STDIN, "") and not is_url(path)]  # fmt: skip
    if config.weights is not None:
        inputs.append(("--weights", str(config.weights)))
    out = os.path.realpath(config.out)
    for name, path in inputs:
        if Path(os.path.realpath(path)).is_relative_to(out):
            raise ConfigError(
                f"{name} {path} lies in --out {config.out}, whose files are replaced; "
                "give another folder"
            )


def lies_in(path: Path | str, folder: Path) -> bool:
    """Whether path is folder or something in it, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
