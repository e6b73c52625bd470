"""Inputs in the folder of the export, whose files are replaced: refused before any work."""

import os
from pathlib import Path

from exporters.bucket import Bucket, Place, place_of
from exporters.filesystems import is_url
from jobs.config import JobConfig
from jobs.errors import ConfigError
from jobs.inputs.files import LIST, Corpus
from jobs.inputs.locations import STDIN


def check_apart(config: JobConfig, corpus: Corpus) -> None:
    """Raise ConfigError if the corpus or --weights lie in --out, where links lead too."""
    given = [path for path in config.corpus if not path.startswith(LIST)]
    # Of what patterns and lists name; folders of a corpus leave --out out.
    folders = {os.path.dirname(file.location) for file in corpus.files if not is_url(file.location)}
    inputs = [("the corpus", path) for path in (*given, *sorted(folders))
              if path not in (STDIN, "") and not is_url(path)]  # fmt: skip
    if config.weights is not None:
        inputs.append(("--weights", str(config.weights)))
    if isinstance(config.out, Bucket):
        urls = [path for path in given if is_url(path)]
        inputs = [("the corpus", url) for url in (*urls, *(file.location for file in corpus.files))]
    for name, path in inputs:
        if lies_in(place_of(path), config.out):
            raise ConfigError(
                f"{name} {path} lies in --out {config.out}, whose files are replaced; "
                "give another folder"
            )


def lies_in(path: Place, folder: Place) -> bool:
    """Whether path is folder or something in it, links followed."""
    if isinstance(path, Bucket) or isinstance(folder, Bucket):
        return f"{path}/".startswith(f"{folder}/")
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
