"""How far a corpus is tokenised, and what it came to."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from exporters.tokens import IdSet


@dataclass
class Counts:
    """What a file, or a part of it, came to."""

    documents: int = 0
    tokens: int = 0  # without the separators
    separators: int = 0  # that the job put between documents
    replaced_sequences: int = 0  # stretches of bytes that were no text, each now one U+FFFD
    bad_records: int = 0


@dataclass
class Done:
    """How far a corpus is tokenised: whole files, and segments of the next."""

    files: list[dict[str, Any]] = field(
        default_factory=list
    )  # of each: name, bytes, sha256, Counts
    segments: int = 0
    digest: str = ""  # of these segments
    counts: Counts = field(default_factory=Counts)  # of these segments
    separated: bool = True  # whether the next document needs no separator before it
    listed: list[dict[str, str]] = field(default_factory=list)  # the first bad records of all

    def total(self) -> Counts:
        """What all of it came to."""
        names = Counts.__dataclass_fields__
        files = [*self.files, asdict(self.counts)]
        return Counts(**{name: sum(file[name] for file in files) for name in names})

    def copy(self) -> "Done":
        """As it is now, but with the same list of files, to which more are added at its end."""
        return replace(self, counts=replace(self.counts), listed=self.listed[:])


@dataclass(frozen=True, kw_only=True)
class TokenTotals:
    """What a corpus came to."""

    tokens: int
    documents: int
    separators: int
    seen: IdSet
    replaced_sequences: int
    bad_records: int
    listed: tuple[dict[str, str], ...]  # the first of the bad records: file, place, reason
    files: tuple[dict[str, Any], ...]

    @property
    def largest_id(self) -> int:
        return self.seen.largest


def totals_of(done: Done, seen: IdSet) -> TokenTotals:
    """What a corpus that is tokenised to its end came to."""
    total = done.total()
    return TokenTotals(
        tokens=total.tokens + total.separators,
        documents=total.documents,
        separators=total.separators,
        seen=seen,
        replaced_sequences=total.replaced_sequences,
        bad_records=total.bad_records,
        listed=tuple(done.listed),
        files=tuple(done.files),
    )
