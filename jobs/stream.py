"""The token stage of a job: the parts that an unfinished run wrote are kept, the rest written."""

from pathlib import Path
from typing import Any

from exporters.errors import ExportError, OtherTokensError
from exporters.files import FileRecord, sha256_of
from exporters.folder import Work
from exporters.journal import JOURNAL
from exporters.kept import drop, start_over
from exporters.manifest import FileEntry
from exporters.tokens import PART_TOKENS, TokenPart, TokenStream, TokenWriter
from jobs.config import JobConfig
from jobs.corpus import Corpus
from jobs.errors import ChangedCorpusError, CorpusError
from jobs.progress import Reporter
from jobs.tokenise import TokenTotals, tokenise, totals_of
from jobs.tokenizer import Tokenizer

RECORD = {"name": str, "bytes": int, "sha256": str, "tokens": int, "replaced_sequences": int}
WRONG = "does not say what is there"
NOTE = "tokens"  # in the journal, once the whole corpus is tokenised


def write_stream(
    config: JobConfig, corpus: Corpus, tokenizer: Tokenizer, work: Work, reporter: Reporter
) -> tuple[TokenTotals, tuple[TokenPart, ...]]:
    """Tokenise the corpus into work.root, from the last part on that is finished.

    With --overwrite, a document that has changed since makes the whole job start over.

    Raises:
        ChangedCorpusError: if a document is not what it was when its tokens were kept, as far as
            they go.
        CorpusError: if a document cannot be read.
        ExportError: if a part cannot be written.
    """
    try:
        return _go_on(config, corpus, tokenizer, work, reporter)
    except ChangedCorpusError as changed:
        if not config.overwrite:
            raise
        reporter.note(f"{changed.path} has changed since its tokens were written: starting over")
        start_over(work)
        return _go_on(config, corpus, tokenizer, work, reporter)


def _go_on(
    config: JobConfig, corpus: Corpus, tokenizer: Tokenizer, work: Work, reporter: Reporter
) -> tuple[TokenTotals, tuple[TokenPart, ...]]:
    believed = _are_records(work)
    if believed:
        parts, files = _kept(work)
        whole = work.journal.notes.get(NOTE)
        if whole is not None and whole["parts"] == len(parts):
            files += whole["files"]
        # Whatever else is kept was made from all documents that were ever noted.
        if changed := changed_file(corpus, _noted(work), reporter):
            raise ChangedCorpusError(changed)
        believed = _fits(config, corpus, work, parts, files)
    if not believed:
        reporter.note(f"{work.root / JOURNAL} {WRONG}: starting over")
        start_over(work)
        parts, files = [], []
    names = {part.file.name for part in parts}
    entries = [entry for entry in work.journal.files.values() if entry.kind == "tokens"]
    drop(work, [entry.name for entry in entries if entry.name not in names])
    noted = whole_files = len(files)

    def on_part(part: TokenPart) -> None:
        nonlocal noted
        work.journal.add_file(token_entry(part), files[noted:])
        noted = len(files)

    separators = max(0, len(files) - 1) if config.separator == "eot" else 0
    writer = TokenWriter(
        work.root,
        PART_TOKENS,
        on_part=on_part,
        kept=parts,
        start=sum(file["tokens"] for file in files) + separators,
        documents=len(files),
    )
    if len(files) == len(corpus.files):
        return totals_of(config, files, writer.seen), tuple(parts)
    try:
        totals = tokenise(config, corpus, tokenizer, writer, reporter, files)
        written = writer.close()
    except OtherTokensError as error:
        # Kept parts hold whole documents, compared by hash above, and the start of the next.
        raise ChangedCorpusError(corpus.files[whole_files].path) from error
    work.journal.add_note(NOTE, {"parts": len(written), "files": files[noted:]})
    return totals, written


def _are_records(work: Work) -> bool:
    """Whether what the journal says of documents, whose tokens are kept or were, can be read."""
    journal = work.journal
    entries = [*journal.files.values(), *journal.forgotten.values()]
    lists = [journal.details[entry.name] for entry in entries if entry.kind == "tokens"]
    whole = journal.notes.get(NOTE)
    if whole is not None:
        if not isinstance(whole, dict) or whole.keys() != {"parts", "files"}:
            return False
        if type(whole["parts"]) is not int:
            return False
        lists.append(whole["files"])
    if not all(isinstance(files, list) for files in lists):
        return False
    entries = [entry for entry in entries if entry.kind == "tokens"]
    tokens = 0
    for entry in sorted(entries, key=lambda entry: (len(entry.name), entry.name)):
        if entry.first != tokens:
            return False
        tokens += entry.count
    return all(
        isinstance(file, dict)
        and file.keys() == RECORD.keys()
        and all(type(file[name]) is kind for name, kind in RECORD.items())
        for files in lists
        for file in files
    )


def _fits(
    config: JobConfig,
    corpus: Corpus,
    work: Work,
    parts: list[TokenPart],
    files: list[dict[str, Any]],
) -> bool:
    """Whether what the journal says of documents fits the corpus and the parts that are kept.

    Args:
        files: records of the documents that the parts hold to their end.
    """
    noted = _noted(work)
    if len(noted) > len(corpus.files) or any(
        (record["name"], record["bytes"]) != (file.name, file.bytes)
        for record, file in zip(noted, corpus.files, strict=False)
    ):
        return False
    stream = TokenStream(work.root, parts)
    separator = 1 if config.separator == "eot" else 0
    starts, end = [0], 0
    for file in files:
        end = starts[-1] + file["tokens"]
        starts.append(end + separator)
    if len(files) == len(corpus.files):
        starts.pop()
        if end != stream.tokens:
            return False
    begun = [start for start in starts if start < stream.tokens]
    return end <= stream.tokens and stream.document_starts() == begun


def changed_file(corpus: Corpus, files: list[dict[str, Any]], reporter: Reporter) -> Path | None:
    """The first file of the corpus that is not what a record of it says, by hash, or None.

    Raises:
        CorpusError: if one cannot be read.
    """
    if not files:
        return None
    with reporter.stage("check corpus", sum(file["bytes"] for file in files), "bytes") as advance:
        for file, record in zip(corpus.files, files, strict=False):
            try:
                if sha256_of(file.path, advance) != record["sha256"]:
                    return file.path
            except ExportError as error:
                raise CorpusError(str(error)) from error
            except OSError as error:
                raise CorpusError(f"{file.path} could not be read: {error.strerror}") from error
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
    """The records of all documents that the journal knows, whether their tokens are kept or not."""
    journal = work.journal
    entries = [*journal.files.values(), *journal.forgotten.values()]
    files: list[dict[str, Any]] = []
    for entry in sorted(entries, key=lambda entry: entry.first):
        files += journal.details[entry.name] if entry.kind == "tokens" else []
    whole = journal.notes.get(NOTE)
    return files if whole is None else files + whole["files"]


def _kept(work: Work) -> tuple[list[TokenPart], list[dict[str, Any]]]:
    """The parts that are finished up to the first that is not, and the files that they hold."""
    parts: list[TokenPart] = []
    files: list[dict[str, Any]] = []
    tokens = documents = 0
    entries = [entry for entry in work.journal.files.values() if entry.kind == "tokens"]
    for entry in sorted(entries, key=lambda entry: entry.first):
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
        files += work.journal.details[entry.name]
        tokens += entry.count
        documents += starts
    return parts, files
