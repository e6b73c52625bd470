from dataclasses import asdict

from exporters.tokens import IdSet
from jobs.done import Counts, Done, totals_of


def test_totals_are_of_whole_files_and_of_the_segments_of_the_next() -> None:
    whole = {"name": "a.txt", "bytes": 9, "sha256": "0"} | asdict(
        Counts(documents=2, tokens=7, separators=1, replaced_sequences=3)
    )
    begun = Counts(documents=1, tokens=4, separators=1, bad_records=5)
    done = Done(files=[whole], segments=1, counts=begun)
    assert done.total() == Counts(
        documents=3, tokens=11, separators=2, replaced_sequences=3, bad_records=5
    )
    totals = totals_of(done, IdSet())
    assert (totals.tokens, totals.documents, totals.separators) == (13, 3, 2)  # ids of the stream
    assert totals.files == (whole,)


def test_a_copy_is_of_the_moment_but_for_its_files() -> None:
    done = Done()
    copy = done.copy()
    done.counts.tokens += 1
    done.listed.append({"file": "a.txt"})
    done.files.append({"name": "a.txt"})
    assert (copy.counts.tokens, copy.listed, copy.files) == (0, [], [{"name": "a.txt"}])
