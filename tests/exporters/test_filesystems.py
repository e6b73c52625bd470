import pytest

from exporters.errors import ExportError
from exporters.filesystems import filesystem, is_url, is_web, reason, shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("sftp://me:secret@host/a?b", "sftp://host/a?b"),
        ("https://host/a?signature=secret", "https://host/a"),
    ],
)
def test_secrets_are_not_shown(url: str, expected: str) -> None:
    assert is_url(url)
    assert expected == shown(url)
    assert url.startswith("https") == is_web(url)


def test_reasons_are_one_line() -> None:
    assert reason(FileNotFoundError("s3://bucket/a")) == "it is not there"
    assert reason(PermissionError(13, "no")) == "no"
    assert reason(RuntimeError("one\ntwo")) == "one"
    assert reason(RuntimeError()) == "RuntimeError"
    assert reason(None) == "no reason was given"


def test_a_protocol_that_nobody_knows_is_named() -> None:
    with pytest.raises(ExportError, match=r"nobody://a/b could not be opened: .*known are s3, "):
        filesystem("nobody://a/b")
