"""--config: a TOML file that gives options by their names; flags win over it."""

import reprlib
import tomllib
from pathlib import Path

import click

from exporters.errors import ExportError
from exporters.nearest import did_you_mean
from exporters.safefile import open_regular
from jobs.commands.types import Size

TOML_NAMES = {bool: "true or false", int: "a whole number", str: "a string"}
MAX_CONFIG_BYTES = 1 << 20


def read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take defaults from a TOML file whose keys are the long options' names."""
    if path is None:
        return
    try:
        with open_regular(path) as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        values = tomllib.loads(text.decode())
    except ExportError as error:
        raise click.UsageError(f"--config {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.UsageError(f"--config {path} could not be read: {reason}") from error
    known = keys(ctx.command)
    defaults = {}
    for key, value in values.items():
        parameter = known.get(key)
        if parameter is None:
            hint = did_you_mean(key, known)
            raise click.UsageError(
                f"--config {path}: {key!r} is not an option of {ctx.info_name}{hint}"
            )
        repeatable = parameter.multiple or parameter.nargs == -1
        if isinstance(value, list) != repeatable:
            kind = "a list" if repeatable else "one value, not a list"
            raise click.UsageError(f"--config {path}: {key!r} takes {kind}")
        for item in value if repeatable else [value]:
            if type(item) not in _toml_types(parameter):
                kinds = " or ".join(TOML_NAMES[kind] for kind in _toml_types(parameter))
                raise click.UsageError(
                    f"--config {path}: {key!r} takes {kinds}, not {reprlib.repr(item)}"
                )
        defaults[str(parameter.name)] = value
    ctx.default_map = defaults


def keys(command: click.Command) -> dict[str, click.Parameter]:
    """What a file may give to a command: options by their long names, and the corpus."""
    return {
        parameter.opts[-1].removeprefix("--"): parameter
        for parameter in command.params
        if parameter.name != "config"
    }


def _toml_types(parameter: click.Parameter) -> tuple[type, ...]:
    """The types of TOML values that an option takes."""
    if getattr(parameter, "is_flag", False):
        return (bool,)
    if isinstance(parameter.type, click.types.IntParamType):
        return (int,)
    if isinstance(parameter.type, Size) or parameter.name == "vocab_size":
        return (str, int)
    return (str,)
