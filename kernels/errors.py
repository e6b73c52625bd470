"""The tree of errors that a user can cause; the command line prints each as one line.

QkvmillError
├── LayerError        kernels     parameters that do not fit together
├── DeviceError       kernels     a device or a kernel that is not there
├── ExportError       exporters   an export that is damaged, unfinished or cannot be written
├── WeightsError      exporters   a weights file that cannot be used
├── ConfigError       jobs        options that contradict each other (exit status 2)
├── CorpusError       jobs        a corpus that cannot be read
└── TokenizerError    jobs        a vocabulary that is missing, damaged or another
"""


class QkvmillError(Exception):
    """What is wrong, where, and what to do about it, in one sentence."""


class LayerError(QkvmillError):
    """The parameters of a first layer do not fit together."""


class DeviceError(QkvmillError):
    """The device or the kernel that was asked for is not there."""
