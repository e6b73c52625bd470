"""Values of a JSON object that someone else wrote, each checked for its kind as it is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.errors import ExportError, WeightsError
from exporters.safefile import open_regular

MAX_JSON_BYTES = 10_000_000
MAX_COUNT = 1 << 31
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Settings:
    """An object of a model's JSON file."""

    where: str  # for messages: the file, and the object in it
    values: Mapping[str, Any]

    def has(self, key: str) -> bool:
        """Whether a key says something: null, and an empty list or object, say nothing."""
        value = self.values.get(key)
        return value is not None and value != [] and value != {}

    def count(self, key: str) -> int:
        """A whole number from 1.

        Raises:
            WeightsError: as for all of these, if the key is missing or holds anything else.
        """
        value = self._value(key)
        if type(value) is not int or not 1 <= value < MAX_COUNT:
            raise self.error(key, f"not a whole number from 1 to {MAX_COUNT - 1}")
        return value

    def index(self, key: str) -> int:
        """A whole number from 0."""
        value = self._value(key)
        if type(value) is not int or not 0 <= value < MAX_COUNT:
            raise self.error(key, f"not a whole number from 0 to {MAX_COUNT - 1}")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        """A number of a range, kept whole where it is."""
        value = self._value(key)
        if not _is_number(value) or not least <= value <= most:
            raise self.error(key, f"not a number from {least:g} to {most:g}")
        return float(value) if isinstance(value, float) else int(value)

    def numbers(self, key: str, length: int, least: float, most: float) -> tuple[float, ...]:
        """A list of so many numbers of a range."""
        value = self._value(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(key, f"not a list of {length} numbers")
        if not all(_is_number(item) and least <= item <= most for item in value):
            raise self.error(key, f"not a list of numbers from {least:g} to {most:g}")
        return tuple(value)

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise self.error(key, "neither true nor false")
        return value

    def object(self, key: str) -> "Settings":
        """An object inside of this one."""
        value = self._value(key)
        if not isinstance(value, dict):
            raise self.error(key, "not an object")
        return Settings(f"{self.where}, {key}", value)

    def error(self, key: str, what: str) -> WeightsError:
        """The error that names a key and its value."""
        shown = repr(self.values.get(key))
        if len(shown) > SHOWN:
            shown = shown[:SHOWN] + "..."
        return WeightsError(f"{self.where}: {key} = {shown} is {what}")

    def _value(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise WeightsError(f"{self.where} lacks {key}; give a model's folder as it was saved")
        return self.values[key]


def read_json(path: Path, where: str) -> Settings:
    """The object of a JSON file of at most 10 MB.

    Raises:
        WeightsError: if it is not there, not a regular file, too large, or no JSON object.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise WeightsError(
                f"{where} has more than {MAX_JSON_BYTES} bytes, which no model's has"
            )
        values = json.loads(raw.decode())
    except NotADirectoryError as error:
        raise WeightsError(f"{where} is not there, since that is a file; give a folder") from error
    except FileNotFoundError as error:
        raise WeightsError(
            f"{where} is not there; give a model's folder as it was saved"
        ) from error
    except OSError as error:
        raise WeightsError(f"{where} could not be read: {error.strerror}") from error
    except (ExportError, ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise WeightsError(f"{where} is not JSON: {reason}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{where} is not a JSON object")
    return Settings(where, values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
