"""Errors about options, corpora and tokenizers; the whole tree is drawn in kernels/errors.py."""

import errno

from kernels.errors import QkvmillError


class ConfigError(QkvmillError):
    """Options that are wrong or contradict each other; exit status 2."""


class CorpusError(QkvmillError):
    """A corpus that cannot be read."""


class ChangedCorpusError(CorpusError):
    """A file that has changed since its tokens were written; `location` is which."""

    def __init__(self, location: str) -> None:
        self.location = location
        super().__init__(
            f"{location} has changed since its tokens were written; put it back as it was, or "
            "give --overwrite to start over"
        )


class TokenizerError(QkvmillError):
    """A vocabulary that is missing, damaged, or not the one that is needed."""


class WorkerError(QkvmillError):
    """A process of the job died."""


class ClusterError(QkvmillError):
    """A cluster that is not there, or whose workers cannot do the job."""


class DisagreementError(QkvmillError):
    """A way of computing is further from float64 than is allowed."""


class OutputError(QkvmillError):
    """Standard output takes no more; `closed`: it is a pipe whose reader has gone."""

    def __init__(self, error: OSError) -> None:
        self.closed = error.errno == errno.EPIPE
        super().__init__(f"standard output could not be written: {error.strerror}")
