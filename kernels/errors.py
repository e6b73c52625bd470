"""The tree of errors that a user can cause; the command line prints each as one line.

QkvmillError
├── LayerError        kernels     parameters that do not fit together
├── DeviceError       kernels     a device or a kernel that is not there
├── MethodError       kernels     tables where they cannot be had
├── ExportError       exporters   an export that is damaged, unfinished or cannot be written
│   ├── DamageError               a file that is missing, or is not what was written in its place
│   └── OtherTokensError          tokens that are given again and are not those that were written
├── WeightsError      exporters   a weights file that cannot be used
├── ConfigError       jobs        options that contradict each other (exit status 2)
├── CorpusError       jobs        a corpus that cannot be read
│   └── ChangedCorpusError        a document that has changed since its tokens were written
├── WorkerError       jobs        a process of a job that died
├── TokenizerError    jobs        a vocabulary that is missing, damaged or another
├── DisagreementError jobs        results of a bench that differ
├── OutputError       jobs        standard output that cannot be written
└── StoppedError      jobs        a signal that asked a job to stop (exit status 130 or 143)
"""


class QkvmillError(Exception):
    """What is wrong, where, and what to do about it, in one sentence."""


class LayerError(QkvmillError):
    """The parameters of a first layer do not fit together."""


class DeviceError(QkvmillError):
    """The device or the kernel that was asked for is not there."""


class MethodError(QkvmillError):
    """The method that was asked for cannot be had."""


def is_out_of_threads(error: BaseException) -> bool:
    """Whether an error is Python's own for a thread that the system did not give."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's own, torch's on the CPU or on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
