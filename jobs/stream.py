"""The token stage of a job: the parts that an unfinished run wrote are kept, the rest written."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from exporters.errors import OtherTokensError
from exporters.files import FileRecord
from exporters.folder import Work
from exporters.journal import JOURNAL
from exporters.kept import drop, start_over
from exporters.manifest import FileEntry
from exporters.strays import WORK
from exporters.tokens import PART_TOKENS, TokenPart, TokenStream, TokenWriter
from jobs.config import JobConfig
from jobs.done import Counts, Done, TokenTotals, totals_of
from jobs.engine import HERE, Engine
from jobs.errors import ChangedCorpusError
from jobs.inputs.files import Corpus
from jobs.inputs.locations import STDIN, shown
from jobs.inputs.opening import hash_input
from jobs.inputs.stdin import gives_nothing
from jobs.progress import Reporter
from jobs.tokenise import tokenise
from jobs.tokenizer import Tokenizer

WRONG = "does not say what is there"
EMPTY = hashlib.sha256().hexdigest()
NOTE = "tokens"  # in the journal, once the whole corpus is tokenised

COUNTS = dict.fromkeys(Counts.__dataclass_fields__, int)
FILE = {"name": str, "bytes": int, "sha256": str} | COUNTS
LISTED = dict.fromkeys(("file", "place", "reason"), str)
"""What JSON objects of the journal hold, by name."""


def write_stream(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    work: Work,
    reporter: Reporter,
    engine: Engine = HERE,
) -> tuple[TokenTotals, tuple[TokenPart, ...]]:
    """Tokenise the corpus into work.root, from the last part on that is finished.

    With --overwrite, a file that has changed since makes the whole job start over.

    Raises:
        ChangedCorpusError: if a file is not what it was when its tokens were kept, as far as they
            go.
        CorpusError: if a file cannot be read.
        ExportError: if a part cannot be written.
    """
    try:
        return _go_on(config, corpus, tokenizer, work, reporter, engine)
    except ChangedCorpusError as changed:
        if not config.overwrite:
            raise
        reporter.note(f"{changed.location} has changed since its tokens were written: "
                      "starting over")  # fmt: skip
        start_over(work)
        return _go_on(config, corpus, tokenizer, work, reporter, engine)


def _go_on(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    work: Work,
    reporter: Reporter,
    engine: Engine,
) -> tuple[TokenTotals, tuple[TokenPart, ...]]:
    parts: list[TokenPart] = []
    done, whole = Done(), False
    believed = _are_records(work)
    if believed:
        parts, done, whole = _kept(work)
        # Whatever else is kept was made from all files that were ever noted.
        if changed := changed_file(corpus, _noted(work), reporter):
            raise ChangedCorpusError(changed)
        believed = _fits(corpus, work, parts, done, whole)
    if not believed:
        reporter.note(f"{work.out / JOURNAL} {WRONG}: starting over")
        start_over(work)
        parts, done, whole = [], Done(), False
    names = {part.file.name for part in parts}
    entries = [entry for entry in work.journal.files.values() if entry.kind == "tokens"]
    drop(work, [entry.name for entry in entries if entry.name not in names])
    reached = done.copy()  # where the next run can go on
    noted = whole_files = len(done.files)

    def on_segment(now: Done, at_place: bool) -> None:
        nonlocal reached, whole_files
        if at_place:
            reached, whole_files = now.copy(), len(now.files)

    def on_part(part: TokenPart) -> None:
        nonlocal noted
        work.journal.add_file(token_entry(part), _record(reached, noted, whole_files))
        noted = whole_files

    total = done.total()
    writer = TokenWriter(
        work.root,
        PART_TOKENS,
        on_part=on_part,
        kept=parts,
        start=total.tokens + total.separators,
        documents=total.documents,
    )
    if whole:
        return totals_of(done, writer.seen), tuple(parts)
    try:
        totals = tokenise(
            config, corpus, tokenizer, writer, reporter, done, on_segment, work.root / WORK, engine
        )
        written = writer.close()
    except OtherTokensError as error:
        raise ChangedCorpusError(shown(corpus.files[whole_files].location)) from error
    work.journal.add_note(NOTE, {"parts": len(written), **_record(done, noted, len(done.files))})
    return totals, written


def _record(done: Done, noted: int, files: int) -> dict[str, Any]:
    """How far the corpus is tokenised, for the journal, which has `noted` of the files already."""
    return {
        "files": done.files[noted:files],
        "segments": done.segments,
        "digest": done.digest,
        "counts": asdict(done.counts),
        "separated": done.separated,
        "listed": done.listed,
    }


def _is_record(value: Any, more: dict[str, type]) -> bool:
    """Whether a value from the journal is what _record gives, with `more` beside."""
    kinds = {"files": list, "segments": int, "digest": str, "counts": dict, "separated": bool,
             "listed": list} | more  # fmt: skip
    return (
        _holds(value, kinds)
        and _holds(value["counts"], COUNTS)
        and all(_holds(file, FILE) for file in value["files"])
        and all(_holds(bad, LISTED) for bad in value["listed"])
    )


def _holds(value: Any, kinds: Mapping[str, type]) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(type(value[name]) is kind for name, kind in kinds.items())
        and all(value[name] >= 0 for name, kind in kinds.items() if kind is int)
    )


def _are_records(work: Work) -> bool:
    """Whether what the journal says of files, whose tokens are kept or were, can be read."""
    journal = work.journal
    entries = [*journal.files.values(), *journal.forgotten.values()]
    entries = [entry for entry in entries if entry.kind == "tokens"]
    if not all(_is_record(journal.details[entry.name], {}) for entry in entries):
        return False
    tokens = 0
    for entry in sorted(entries, key=lambda entry: (len(entry.name), entry.name)):
        if entry.first != tokens:
            return False
        tokens += entry.count
    whole = journal.notes.get(NOTE)
    return whole is None or _is_record(whole, {"parts": int})


def _fits(corpus: Corpus, work: Work, parts: list[TokenPart], done: Done, whole: bool) -> bool:
    """Whether what the journal says of files fits the corpus and the parts that are kept."""
    noted = _noted(work)
    if len(noted) > len(corpus.files) or any(
        record["name"] != file.name or file.bytes not in (None, record["bytes"])
        for record, file in zip(noted, corpus.files, strict=False)
    ):
        return False
    total = done.total()
    end = total.tokens + total.separators
    stream = TokenStream(work.root, parts)
    if whole:
        documents = sum(part.documents for part in parts)
        return len(noted) == len(corpus.files) and (end, total.documents) == (
            stream.tokens,
            documents,
        )
    return end <= stream.tokens and total.documents == len(stream.starts(0, end))


def changed_file(corpus: Corpus, files: list[dict[str, Any]], reporter: Reporter) -> str | None:
    """The first file of the corpus that is not what a record of it says, by hash, or None.

    Standard input that gives nothing is not compared, which is said.

    Raises:
        CorpusError: if one cannot be read.
    """
    if not files:
        return None
    with reporter.stage("check corpus", sum(file["bytes"] for file in files), "bytes") as advance:
        for file, record in zip(corpus.files, files, strict=False):
            nothing = file.location == STDIN and gives_nothing()
            sha256 = EMPTY if nothing else hash_input(file, advance, reporter.note_or_stop)
            if file.location == STDIN and sha256 == EMPTY:
                reporter.note("nothing comes from standard input: it is not compared")
            elif sha256 != record["sha256"]:
                return shown(file.location)
    return None


def token_entry(part: TokenPart) -> FileEntry:
    """The manifest's entry of a part of the token stream."""
    return FileEntry(
        name=part.file.name,
        kind="tokens",
        bytes=part.file.bytes,
        sha256=part.file.sha256,
        first=part.first_token,
        count=part.tokens,
        tensors={
            "input_ids": {"dtype": "int32", "shape": [part.tokens]},
            "document_starts": {"dtype": "int64", "shape": [part.documents]},
        },
    )


def _noted(work: Work) -> list[dict[str, Any]]:
    """The records of all files that the journal knows, whether their tokens are kept or not."""
    journal = work.journal
    entries = [*journal.files.values(), *journal.forgotten.values()]
    files: list[dict[str, Any]] = []
    for entry in sorted(entries, key=lambda entry: (entry.first, entry.name)):
        files += journal.details[entry.name]["files"] if entry.kind == "tokens" else []
    whole = journal.notes.get(NOTE)
    return files if whole is None else files + whole["files"]


def _kept(work: Work) -> tuple[list[TokenPart], Done, bool]:
    """The parts that are finished up to the first that is not, what of the corpus they hold, and
    whether that is all of it."""
    parts: list[TokenPart] = []
    done = Done()
    tokens = documents = 0
    entries = [entry for entry in work.journal.files.values() if entry.kind == "tokens"]
    for entry in sorted(entries, key=lambda entry: (entry.first, entry.name)):
        if entry.first != tokens:
            break
        starts = entry.tensors["document_starts"]["shape"][0]
        parts.append(
            TokenPart(
                file=FileRecord(entry.name, entry.bytes, entry.sha256),
                first_token=tokens,
                tokens=entry.count,
                first_document=documents,
                documents=starts,
            )
        )
        done = _reached(done, work.journal.details[entry.name])
        tokens += entry.count
        documents += starts
    last = work.journal.notes.get(NOTE)
    whole = last is not None and last["parts"] == len(parts)
    return parts, _reached(done, last) if last is not None and whole else done, whole


def _reached(before: Done, record: dict[str, Any]) -> Done:
    """How far the corpus is tokenised by a record of the journal that follows others."""
    return Done(
        files=before.files + record["files"],
        segments=record["segments"],
        digest=record["digest"],
        counts=Counts(**record["counts"]),
        separated=record["separated"],
        listed=record["listed"],
    )
