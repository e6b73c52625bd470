from pathlib import Path

import pytest
import zstandard

from jobs.errors import CorpusError
from tests.jobs.inputs.streams import read, write

TEXT = b"One fish, two fish, red fish, blue fish.\n" * 20_000


def compressed(data: bytes, **options: int) -> bytes:
    """A frame, whose size is not told in it."""
    params = zstandard.ZstdCompressionParameters(**options)
    stream = zstandard.ZstdCompressor(compression_params=params).compressobj()
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize("level", [-5, 1, 19])
@pytest.mark.parametrize("checksum", [0, 1])
def test_frames_of_every_kind_are_read(tmp_path: Path, level: int, checksum: int) -> None:
    frames = [
        compressed(TEXT, compression_level=level, write_checksum=checksum),
        zstandard.ZstdCompressor(level=level).compress(TEXT),
        zstandard.ZstdCompressor(level=level, write_content_size=False).compress(b"short"),
        b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc",  # a frame that is to be skipped
        compressed(b"", compression_level=level),
    ]
    path = write(tmp_path, "a.txt.zst", b"".join(frames))
    assert read(path, 100_000) == TEXT + TEXT + b"short"


def test_a_frame_that_is_to_be_skipped_may_be_the_first_and_not_cut_off(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000)
    path = write(tmp_path, "a.txt.zst", skipped + compressed(b"text"))
    assert read(path) == b"text"
    write(tmp_path, "a.txt.zst", skipped[:-1])
    with pytest.raises(CorpusError, match="cut off: it ends after byte 300007, in the middle"):
        read(path)


def test_a_large_window_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt.zst", compressed(b"text", window_log=27))
    assert read(path) == b"text"
    write(tmp_path, "a.txt.zst", compressed(b"text", window_log=28))
    with pytest.raises(CorpusError, match=r"needs a window of 268435456 bytes.*zstd -d --long=31"):
        read(path)


def test_a_dictionary_is_refused(tmp_path: Path) -> None:
    samples: list[bytes | bytearray | memoryview] = [
        f"{n} fish of {n * n}".encode() * 20 for n in range(200)
    ]
    trained = zstandard.train_dictionary(2000, samples, dict_id=77)
    data = zstandard.ZstdCompressor(dict_data=trained).compress(samples[0])
    path = write(tmp_path, "a.txt.zst", data)
    with pytest.raises(CorpusError, match=r"needs a zstd dictionary \(number 77\)"):
        read(path)


@pytest.mark.parametrize("header", [0b111, (MAX := (128 << 10) + 1) << 3])
def test_what_is_no_block_is_damage(tmp_path: Path, header: int) -> None:
    good = compressed(b"text")
    path = write(tmp_path, "a.txt.zst", good[:6] + header.to_bytes(3, "little") + good[9:])
    with pytest.raises(CorpusError, match="damaged after byte 6: what stands there is no block"):
        read(path)
