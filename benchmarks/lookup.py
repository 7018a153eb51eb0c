"""What a person waits for at the SQL ledger: one recipient across all sends, how a send stands, and a page's values.

A million claims, on SQLite and on PostgreSQL: in one send, in fifty, and in a thousand.
Each figure is the middle one of some look-ups that come after a first one, which warms the caches.

python -m benchmarks.lookup [claims]
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import insert
from sqlalchemy.engine import Engine

from airflow_provider_responsys.ledger.fingerprint import fingerprinter, key_id
from airflow_provider_responsys.ledger.interface import new_batch_id
from airflow_provider_responsys.ledger.sql_records import Records
from airflow_provider_responsys.ledger.sql_schema import ClaimRow, Database
from airflow_provider_responsys.ledger.sql_tables import batches, digest, sends, task_instances, tries
from airflow_provider_responsys.report.from_ledger import LedgerReports
from airflow_provider_responsys.report.model import PushTask
from benchmarks.report import Report
from tests.support.databases import postgres_databases

MILLION = 1_000_000
BATCH = 200  # recipients
SENDS = (1, 50, 1_000)
LOOKS = 15
GOAL = 100  # milliseconds
GOAL_PAGE = 300  # the same, of all that a page shows

Fingerprint = Callable[[str], bytes]


def main(recipients: int = MILLION) -> None:
    """Fill both databases, look, and write the report."""
    report = Report("lookup", "What a person waits for at the SQL ledger", {"claims": recipients})
    with tempfile.TemporaryDirectory() as folder, postgres_databases() as server:
        for number in SENDS:
            names = {"SQLite": f"sqlite:///{Path(folder) / f'ledger-{number}.db'}", "PostgreSQL": server(f"s{number}")}
            for name, url in names.items():
                fingerprint = filled(url, recipients, number)
                look(report, f"{name}, {number:,} sends" if number > 1 else f"{name}, one send", url, fingerprint)
    report.write()


def look(report: Report, where: str, url: str, fingerprint: Fingerprint) -> None:
    """Report how long each look-up takes."""
    records = Records(sqlalchemy.create_engine(url))
    known, unknown = fingerprint("0"), fingerprint("nobody")
    looks: dict[str, Callable[[], object]] = {
        "one recipient": lambda: records.person(known),
        "a recipient who is not there": lambda: records.person(unknown),
        "a send's summary": lambda: records.send("send 0"),
        "all sends' summaries": records.sends,
    }
    if not records.person(known) or records.person(unknown):
        raise RuntimeError("the look-up found another recipient than was asked for")
    for what, work in looks.items():
        report.add(f"{where}: {what}", middle(work), "ms", at_most=GOAL)
    records.close()
    reports = LedgerReports(sqlalchemy.create_engine(url))
    task = PushTask(dag_id="bench", task_id="push", run_id="send 0")
    pages: dict[str, Callable[[], object]] = {
        "the page of all pushes": lambda: reports.pushes(dag_ids=None),
        "the page of one push": lambda: reports.push(task),
        "the page of one recipient": lambda: reports.person(known),
    }
    if reports.pushes(dag_ids=None)[1] == 0 or reports.push(task) is None:
        raise RuntimeError("the pages are empty")
    for what, work in pages.items():
        report.add(f"{where}: {what}", middle(work), "ms", at_most=GOAL_PAGE)
    reports.close()


def middle(work: Callable[[], object]) -> float:
    """Return the milliseconds of the middle one of some calls of *work*."""
    work()
    times = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1_000


def filled(url: str, recipients: int, number: int) -> Fingerprint:
    """Fill the ledger at *url* with *recipients* claims, spread over *number* sends; return how it knows them."""
    engine = sqlalchemy.create_engine(url)
    database = Database(engine)
    now = datetime.now(UTC)
    key = database.prepare(now)
    fingerprint = fingerprinter(key)
    each = recipients // number
    for send_id in range(1, number + 1):
        first = (send_id - 1) * each
        people = [fingerprint(str(person)) for person in range(first, first + each)]
        ids = [new_batch_id() for _ in range(0, each, BATCH)]
        with database.transaction() as connection:
            for table, rows in send(send_id, key_id(key), ids, now).items():
                connection.execute(insert(table), rows)
            claiming = (ClaimRow(one, ids[place // BATCH], place % BATCH) for place, one in enumerate(people))
            database.insert_claims(connection, send_id, sorted(claiming))
    analyze(engine)
    database.dispose()
    return fingerprint


def send(
    send_id: int, key_name: str, ids: Sequence[int], now: datetime
) -> dict[sqlalchemy.Table, list[dict[str, Any]]]:
    """Return the rows of one send but its claims: every batch accepted and finished, with a failure in it."""
    name = f"send {send_id - 1}"
    task = f"bench/push/{name}/-1"
    identity = json.dumps({"account": "bench", "campaign_name": name})
    at = {"created_at": now}
    outcome = {"outcome_at": now, "succeeded": BATCH - 1, "failed": json.dumps({"NO_RECIPIENT_FOUND": [7]})}
    return {
        sends: [
            {"id": send_id, "send_hash": digest(name), "send_key": name, "account": "bench", "identity": identity}
            | {"fingerprint_key_id": key_name, **at}
        ],
        task_instances: [
            {"id": send_id, "name_hash": digest(task), "name": task, "claim_count": len(ids), "current_try_id": send_id}
            | at
        ],
        tries: [
            {"id": send_id, "send_id": send_id, "task_instance_id": send_id, "start": 1, "try_number": 1}
            | {"max_tries": 0, "instance_id": "", "answer_within": 70.0, "began_at": now, "last_write_at": now}
        ],
        batches: [
            {"id": batch_id, "send_id": send_id, "try_id": send_id, "number": number, "size": BATCH}
            | {"claimed_at": now, "settled_at": now, "request_id": f"{batch_id}", "polls": 3, **outcome}
            for number, batch_id in enumerate(ids)
        ],
    }


def analyze(engine: Engine) -> None:
    """Let PostgreSQL know its tables, as it does by itself within a minute."""
    if engine.dialect.name == "postgresql":
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
