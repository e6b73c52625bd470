import pytest

from exporters.filesystems import is_url
from jobs.inputs.locations import shown


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("-", "standard input"),
        ("a/b?c.txt", "a/b?c.txt"),
        ("s3://bucket/a@b?.txt", "s3://bucket/a@b?.txt"),
        ("https://me:secret@host:80/a/b.txt?signature=x#y", "https://host:80/a/b.txt"),
        ("memory:///a", "memory:///a"),
    ],
)
def test_a_location_is_shown_without_what_lets_others_in(location: str, expected: str) -> None:
    assert expected == shown(location)


@pytest.mark.parametrize(
    ("text", "expected"), [("s3://a", True), ("a/b://c", False), ("a:b", False), ("//a", False)]
)
def test_a_url_begins_with_its_protocol(text: str, expected: bool) -> None:
    assert expected == is_url(text)
