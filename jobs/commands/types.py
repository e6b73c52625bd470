"""The kinds of values that options take, and commands by name; what is near is suggested."""

import os
from typing import Any

import click

from exporters.bucket import place_of
from exporters.filesystems import is_url
from exporters.nearest import nearest

COUNT = click.IntRange(1, 2**31 - 1)

SIZE_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


class Size(click.ParamType[int]):
    """A number of bytes with an optional unit: 512MB, 1.5GiB, 4096."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip()
        number = text.rstrip("BbKkMmGgTtIi ")
        unit = text[len(number) :].strip().upper()
        try:
            size = int(float(number) * SIZE_UNITS[unit])
        except (KeyError, ValueError, OverflowError):
            self.fail(f"{value!r} is not a size such as 512MB or 1GiB", param, ctx)
        return size


class SafePath(click.Path):
    """A path that is not empty, which would mean the current folder, and is UTF-8.

    safetensors opens no other paths; only a corpus, which it does not open, may have one.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        if "\0" in value:
            self.fail(f"the path {value!r} holds a NUL", param, ctx)
        if param is not None and param.name != "corpus":
            try:
                os.fsencode(value).decode()
            except UnicodeDecodeError:
                self.fail(f"the path {os.fsencode(value)!r} is not UTF-8", param, ctx)
        return super().convert(value, param, ctx)


class PlaceOrUrl(SafePath):
    """A path, or the URL of a place in a bucket."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value) and "\0" not in value:
            return place_of(value)
        return super().convert(value, param, ctx)


class Choice(click.Choice[str]):
    """One of some words; of another one it says which was probably meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        near = nearest(str(value), self.choices)
        return message if near is None else f"{message} Did you mean {near}?"
