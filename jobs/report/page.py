"""The page itself: facts and charts -> one HTML file that loads nothing."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from altair import SCHEMA_VERSION
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from exporters.errors import ExportError
from exporters.files import whole_file, write_all
from exporters.space import readable
from jobs.printable import printable
from jobs.report.command import GENERATOR
from jobs.units import duration
from jobs.versions import versions

HERE = Path(__file__).parent
EXPOSED = "window.vegaEmbed = vegaEmbed;"  # to page.js, of all that the bundle holds
VEGA_LITE = ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])  # as charts.py writes it
LIBRARIES = (
    f"Vega {vl_convert.get_vega_version()}, Vega-Lite {VEGA_LITE} and "
    f"Vega-Embed {vl_convert.get_vega_embed_version()}"
)


def render(facts: dict[str, Any], data: dict[str, Any]) -> str:
    """The HTML of a report.

    Strings of strangers are escaped here, every one: the template escapes what it is given, and
    data goes in as JSON in which no `<` stands. Only the two scripts that are named by their
    hashes run, and nothing can be connected to.

    Args:
        facts: what the template shows.
        data: what the scripts draw: specifications of charts, and what attention maps are made of.
    """
    scripts = [_libraries(), (HERE / "page.js").read_text("utf-8")]
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"readable": readable, "duration": duration, "count": _count}
    return environment.get_template("page.html").render(
        facts,
        data=data,
        generator=Markup(GENERATOR),
        policy=_policy(scripts),
        libraries=LIBRARIES,
        licences=(HERE / "licences.txt").read_text("utf-8"),
        version=versions()["qkvmill"],
        scripts=[Markup(script) for script in scripts],
        style=Markup((HERE / "page.css").read_text("utf-8")),
    )


def write(page: Path, text: str) -> int:
    """Write a page whole; returns its bytes.

    Raises:
        ExportError: if it cannot be written.
    """
    contents = text.encode()
    try:
        with whole_file(page.parent, page.name) as file:
            write_all(file, contents)
    except ExportError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise ExportError(
            f"{page} could not be written: {error.__cause__.strerror}; name another place with "
            "--out"
        ) from error
    return len(contents)


@cache
def _libraries() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, about 0.9 MB, as the package has it."""
    return vl_convert.javascript_bundle(EXPOSED, VEGA_LITE)


def _policy(scripts: list[str]) -> str:
    """The Content-Security-Policy: these scripts, inline styles, and nothing from anywhere."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def _shown(value: Any) -> Any:
    """What the template prints of a value, before it escapes it."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else json.dumps(value, ensure_ascii=False)
