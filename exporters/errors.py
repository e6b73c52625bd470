"""Errors about files that we write or read; the whole tree is drawn in kernels/errors.py."""

from kernels.errors import QkvmillError


class ExportError(QkvmillError):
    """An export is damaged, unfinished or cannot be written."""


class OtherTokensError(ExportError):
    """Tokens that are given again are not those that were written."""


class WeightsError(QkvmillError):
    """A weights file cannot be used."""


class DamageError(ExportError):
    """A file is missing, or is not what an export holds in its place."""
