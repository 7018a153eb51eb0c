"""The file in which a wait tells the outcome of each recipient of its requests.

Succeeded means handed to Responsys' personalization queue, not delivered.
"""

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from airflow_provider_responsys.errors import InvalidSettings, code_of
from airflow_provider_responsys.files.formats import Format
from airflow_provider_responsys.files.storage import Open, Target, write_whole

if TYPE_CHECKING:
    from airflow_provider_responsys.ledger.sql_records import Records
    from airflow_provider_responsys.ledger.sql_values import RequestOutcome
    from airflow_provider_responsys.protocol.results import Results
    from airflow_provider_responsys.waiting.asked import Asked

COLUMNS: Final = ("request_id", "position", "outcome", "code")
JOINED: Final = (*COLUMNS, "row", "identifier", "value")
SUCCEEDED, FAILED, UNKNOWN = "succeeded", "failed", "unknown"

REQUESTS_A_READ: Final = 100
MOST_POSITIONS: Final = 1_000_000
"""More than a request has recipients: a request's number times this, and a position, are one number."""

SETTINGS: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
    CREATE TABLE recipient (place INTEGER PRIMARY KEY, row INTEGER, identifier TEXT, value TEXT);
"""
INSERT: Final = "INSERT OR REPLACE INTO recipient VALUES (?, ?, ?, ?)"
OF_REQUEST: Final = "SELECT place - ?, row, identifier, value FROM recipient WHERE place BETWEEN ? AND ?"

Who: TypeAlias = Mapping[int, tuple[int, str, str]]
"""The row, the identifier and the value of recipients, by their position in a request."""


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """The file at *target* about what was *asked*, joined with the files of pushes that *open_path* opens."""

    target: Target
    asked: "Asked"
    open_path: Open
    log: Any

    @classmethod
    def of(
        cls,
        path: str | None,
        asked: "Asked",
        *,
        map_index: int | None,
        template: object,
        ledger_conn_id: str | None,
        open_path: Open,
        log: Any,
    ) -> "ResultsFile | None":
        """Return the file at *path*, None if there is to be none; raise `InvalidSettings` where there can be none."""
        target = Target.of("results_path", path, open_path, map_index=map_index, template=template)
        if target is None:
            return None
        if not ledger_conn_id:
            raise InvalidSettings(
                "results_path needs a SQL ledger, which knows the outcome of each recipient: set ledger_conn_id, or "
                "[responsys] ledger_conn_id in Airflow's config, for the push and for the sensor"
            )
        if asked.ids and not asked.send_keys:
            raise InvalidSettings(
                "results_path needs the push's whole output, push.output, as request_ids: it says which send it is"
            )
        return cls(target, asked, open_path, log)

    def write(self, records: "Callable[[], Records]", results: "Results") -> list[str]:
        """Write it from what *records* knows, where *results* are counted; return what is wrong with it."""
        where = self.target.text
        try:
            with tempfile.TemporaryDirectory(prefix="responsys-") as folder, closing(_Recipients(folder)) as recipients:
                unread = self._read_recipients(recipients)
                counts: Counter[str] = Counter()
                columns = JOINED if self.asked.recipients_paths else COLUMNS
                with closing(records()) as ledger:
                    rows = self._rows(ledger, recipients, counts)
                    cut = (row[: len(columns)] for row in rows)
                    write_whole([(self.target, self.target.format.written(columns, cut))])
        except Exception as error:  # noqa: BLE001 -- whatever storage it is: the counts stand
            name = type(error).__name__
            self.log.error("The results could not be written to %s (%s: %s)", where, name, error)  # noqa: TRY400 -- said in a line
            return [f"the results were not written to {where} ({code_of(error)}): clear the sensor, and it writes them"]
        self.log.info("The outcome of each recipient is written to %s", where)
        lacking = results.recipients_succeeded + results.recipients_failed - counts[SUCCEEDED] - counts[FAILED]
        if lacking > 0:
            self.log.warning(
                "%d recipients are counted by outcome and unknown in %s: the ledger was not told", lacking, where
            )
        return unread

    def _read_recipients(self, recipients: "_Recipients") -> list[str]:
        """Read the files of the pushes; return what is wrong with them."""
        numbers = {request_id: number for number, request_id in enumerate(self.asked.ids)}
        codes: Counter[str] = Counter()
        for text in self.asked.recipients_paths:
            try:
                path = self.open_path(text)
                with path.fs.open(path.path, "rb") as file:
                    recipients.add(Format.of("recipients_path", text).read(file), numbers)
            except Exception as error:  # noqa: BLE001 -- anything may stand there by now; only its kind is told
                name = type(error).__name__
                self.log.error("The recipients of a push could not be read from %s (%s)", text, name)  # noqa: TRY400 -- the same
                codes[name] += 1
        if not codes:
            return []
        many = f"{codes.total()} of {len(self.asked.recipients_paths)} pushes ({', '.join(codes)})"
        return [f"{self.target.text} does not name the recipients of {many}: their files could not be read"]

    def _rows(self, ledger: "Records", recipients: "_Recipients", counts: Counter[str]) -> Iterator[Sequence[object]]:
        ids = self.asked.ids
        for start in range(0, len(ids), REQUESTS_A_READ):
            some = ids[start : start + REQUESTS_A_READ]
            known = ledger.requests(self.asked.send_keys, some)
            for number, request_id in enumerate(some, start):
                size, outcome = known.get(request_id, (self.asked.sizes.get(request_id), None))
                for row in _of_request(request_id, size, outcome, recipients.of(number)):
                    counts[str(row[2])] += 1
                    yield row


def _of_request(
    request_id: str, size: int | None, outcome: "RequestOutcome | None", who: Who
) -> Iterator[Sequence[object]]:
    """Yield a row for each recipient of a request; one for all of them where their number is not known."""
    size = max(who, default=-1) + 1 if size is None else size
    if not size:
        yield request_id, None, UNKNOWN, None, None, None, None
    codes = {} if outcome is None else {place: code for code, places in outcome.failed.items() for place in places}
    for position in range(size):
        if outcome is None or outcome.error:
            told, code = UNKNOWN, outcome and outcome.error
        else:
            code = codes.get(position)
            told = FAILED if code else SUCCEEDED
        yield request_id, position, told, code, *who.get(position, (None, None, None))


class _Recipients:
    """Who stands where in which request, in a database in *folder*."""

    def __init__(self, folder: str) -> None:
        self._database = sqlite3.connect(Path(folder) / "recipients")
        self._database.executescript(SETTINGS)

    def close(self) -> None:
        """Drop it."""
        self._database.close()

    def add(self, rows: Iterator[dict[str, Any]], numbers: Mapping[str, int]) -> None:
        """Take in those of *rows*, of a push's file, whose request has one of the *numbers*."""
        self._database.executemany(
            INSERT,
            (
                (
                    numbers[row["request_id"]] * MOST_POSITIONS + int(row["position"]),
                    int(row["row"]),
                    row["identifier"],
                    row["value"],
                )
                for row in rows
                if row["request_id"] in numbers
            ),
        )

    def of(self, number: int) -> Who:
        """Return who stands in the request of this *number*."""
        first = number * MOST_POSITIONS
        found = self._database.execute(OF_REQUEST, (first, first, first + MOST_POSITIONS - 1))
        return {place: (row, identifier, value) for place, row, identifier, value in found}
