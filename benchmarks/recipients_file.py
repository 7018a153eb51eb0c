"""Seconds and memory of the files about recipients: what a push writes, and what a wait joins with it.

A million recipients are spooled, sent to in batches of 200 of which each hundredth is
in doubt, and told in a file; then the outcome of each, which a SQLite ledger holds, is
joined with that file. Each format in a process of its own. "Beside the send" is the time
that keeping the outcomes and writing the file take.

Memory is the process's highest resident set over what it is when the part begins.

python -m benchmarks.recipients_file [recipients]
"""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from airflow.sdk import ObjectStoragePath

from airflow_provider_responsys.files.recipients_file import RecipientsFile
from airflow_provider_responsys.files.results_file import ResultsFile
from airflow_provider_responsys.files.storage import Target
from airflow_provider_responsys.ledger.fingerprint import fingerprinter
from airflow_provider_responsys.ledger.interface import Accepted, Wanted
from airflow_provider_responsys.ledger.sql import SqlLedger
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.protocol.push import MAX_BODY, MAX_RECIPIENTS
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.recipients.fields import FieldSettings
from airflow_provider_responsys.recipients.outcomes import Outcome
from airflow_provider_responsys.recipients.rows import CHUNK_ROWS, Chunk
from airflow_provider_responsys.recipients.spool import Batch, Spool
from airflow_provider_responsys.sending.outcome import Resumed, Sent
from airflow_provider_responsys.sending.run import Doubt, Report
from airflow_provider_responsys.waiting.asked import Asked
from benchmarks.ground import apart, forget_highest, resident

RECIPIENTS = 1_000_000
EACH_IN_DOUBT = 100  # of so many batches, one
TOGETHER = 50  # batches in one transaction of the ledger
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv")
GOAL = 20  # seconds per million, beside the send
COLUMNS = ("customer_id", "first_name", "city", "code", "points")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """What a part took: seconds, those of them on a processor, and megabytes over its begin."""

    seconds: float
    processor: float
    memory: float


def main(recipients: int = RECIPIENTS) -> None:
    """Measure each format, then the join, and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = apart(push, recipients, None)
        print(f"Push of {recipients:,} without a file: {plain.memory:.0f} MB over start")
        for suffix in SUFFIXES:
            path = folder / f"sent{suffix}"
            told = apart(push, recipients, str(path))
            print(
                f"Push with {suffix}: {told.seconds:.1f} s ({told.processor:.1f} s of a processor) beside the send "
                f"(goal for a million: {GOAL}), "
                f"{told.memory:.0f} MB over start, {path.stat().st_size / 1e6:.0f} MB on disk"
            )
        apart(remember, recipients, str(folder / "ledger"))
        for suffix in SUFFIXES:
            joined = apart(wait, recipients, str(folder), suffix)
            print(
                f"Wait with {suffix}: {joined.seconds:.1f} s ({joined.processor:.1f} s of a processor), "
                f"{joined.memory:.0f} MB over start"
            )


def push(recipients: int, path: str | None) -> Part:
    """Spool, note what a sender notes, and write the file at *path*, if there is one."""
    target = Target.of("recipients_path", path, ObjectStoragePath, map_index=None, template=path)
    file = RecipientsFile(target, log=log)
    forget_highest()
    before, beside, at_work = resident(), 0.0, 0.0
    with Spool(keeps_outcomes=file.is_wanted) as spool, file.of(spool):
        spool.fill(rows(recipients), FieldSettings(), fingerprinter(b"k" * 16))
        report = Report(len(spool))
        for number, batch in enumerate(batches(spool)):
            outcome = settled(number, batch, report)
            began, worked = time.monotonic(), time.process_time()
            if spool.outcomes:
                spool.outcomes.note(batch.positions, outcome)
            beside += time.monotonic() - began
            at_work += time.process_time() - worked
        file.knows(Sent.of(spool, Resumed(), report))
        began, worked = time.monotonic(), time.process_time()
    if file.told()["recipients_path"] != path:
        raise RuntimeError(file.told()["recipients_problem"])
    beside += time.monotonic() - began
    return Part(beside, at_work + time.process_time() - worked, resident("VmHWM") - before)


def settled(number: int, batch: Batch, report: Report) -> Outcome:
    """Count batch *number* in *report*; return the outcome of its recipients."""
    if number % EACH_IN_DOUBT == EACH_IN_DOUBT - 1:
        doubt = Doubt(f"batch {number}", len(batch), "no whole answer came", batch.fingerprints, number)
        report.doubts.append(doubt)
        return doubt.outcome
    report.accepted += len(batch)
    return Outcome("accepted", request_id(number))


def wait(recipients: int, folder: str, suffix: str) -> Part:
    """Join what the ledger in *folder* knows with the file of the push there."""
    requests = -(-recipients // MAX_RECIPIENTS)
    ids = tuple(request_id(number) for number in range(requests) if number % EACH_IN_DOUBT != EACH_IN_DOUBT - 1)
    asked = Asked(ids, None, ("autumn",), recipients_paths=(f"{folder}/sent{suffix}",))
    file = ResultsFile.of(
        f"{folder}/results{suffix}",
        asked,
        map_index=None,
        template="",
        ledger_conn_id="ledger",
        open_path=ObjectStoragePath,
        log=log,
    )
    forget_highest()
    before, began, worked = resident(), time.monotonic(), time.process_time()
    if file is None or (problems := file.write(lambda: Records(ledger(f"{folder}/ledger")), Results())):
        raise RuntimeError(problems)
    return Part(time.monotonic() - began, time.process_time() - worked, resident("VmHWM") - before)


def remember(recipients: int, path: str) -> None:
    """Record in the ledger at *path* what the push did, and how each request ended."""
    fingerprints = [number.to_bytes(9, "big") for number in range(recipients)]
    wanted = [
        Wanted(number, fingerprints[start : start + MAX_RECIPIENTS])
        for number, start in enumerate(range(0, recipients, MAX_RECIPIENTS))
    ]
    task = {"task_instance": "dag/push/run/-1", "try_number": 1, "max_tries": 0, "retries": 0}
    with closing(SqlLedger(ledger(path), send_key="autumn", **task)) as book:
        book.begin({"campaign_name": "Bench"})
        for start in range(0, len(wanted), TOGETHER):
            some = wanted[start : start + TOGETHER]
            book.commit([], some)
            book.commit([Accepted(want.number, request_id(want.number)) for want in some], [])
    records = Records(ledger(path))
    for want in wanted:
        failed = {"NO_RECIPIENT_FOUND": range(0, len(want.fingerprints), 20)}
        succeeded = len(want.fingerprints) - len(failed["NO_RECIPIENT_FOUND"])
        records.record_outcome("autumn", request_id(want.number), succeeded=succeeded, failed=failed)
    records.close()


def ledger(path: str) -> sqlalchemy.Engine:
    """Return a new engine on the ledger at *path*."""
    return sqlalchemy.create_engine(f"sqlite:///{path}")


def request_id(number: int) -> str:
    """Return an id as long as Responsys' own."""
    return f"YXN5bmNyZXF1ZXN0{number:024}"


def batches(spool: Spool) -> Iterator[Batch]:
    """Return the batches of *spool*."""
    return spool.batches(max_recipients=MAX_RECIPIENTS, max_bytes=MAX_BODY - 1_000)


def rows(recipients: int) -> Iterator[Chunk]:
    """Yield a table of *recipients*."""
    for start in range(0, recipients, CHUNK_ROWS):
        some = range(start, min(start + CHUNK_ROWS, recipients))
        yield Chunk(
            COLUMNS, [(f"C{n:09}", f"Zoë {n}", "São Paulo", f"WELCOME{n % 97}", n / 2) for n in some], is_table=True
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
