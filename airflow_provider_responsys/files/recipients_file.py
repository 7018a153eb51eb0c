"""The file in which a push tells the outcome of each row of its source."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_responsys.errors import Fenced, ResponsysError, code_of
from airflow_provider_responsys.files.formats import checked_every_piece
from airflow_provider_responsys.files.storage import Target, write_whole
from airflow_provider_responsys.recipients.outcomes import NOT_SENT, Gone, Outcome, Told

if TYPE_CHECKING:
    from airflow_provider_responsys.recipients.outcomes import Outcomes
    from airflow_provider_responsys.recipients.spool import Spool
    from airflow_provider_responsys.sending.outcome import Sent

NOT_IN_SOURCE = "not_in_source"
NOT_READ = "its source was not read to the end; a file of an earlier try is left as it is"
ENDED = "the try ended before it was written; another try writes it"
DRY_RUN = Outcome(NOT_SENT, reason="dry run")


class RecipientsFile:
    """The file at *target*, if one is wanted. *is_stopped* says whether the task was told to stop."""

    def __init__(self, target: Target | None = None, *, is_stopped: Callable[[], bool] = bool, log: Any = None) -> None:
        self._target = target
        self._is_stopped = is_stopped
        self._log = log
        self._sent: Sent | None = None
        self._is_written = False
        self._problem = NOT_READ

    @property
    def is_wanted(self) -> bool:
        """Whether there is a file to write."""
        return self._target is not None

    def knows(self, sent: "Sent") -> None:
        """Take note that *sent* is what the file would have to tell now."""
        self._sent, self._problem = sent, ENDED

    @contextmanager
    def of(self, spool: "Spool") -> Iterator[None]:
        """Write the file at the end of the block, whether that fails or not, while there is the *spool*."""
        try:
            yield
        except Fenced:
            raise
        except Exception as error:
            self._write(spool, error)
            raise
        self._write(spool, None)

    def told(self) -> dict[str, str | None]:
        """Return what the output of the push tells of it: where it is, or why it is not there."""
        if self._target is None:
            return {"recipients_path": None, "recipients_problem": None}
        written = self._target.text if self._is_written else None
        return {"recipients_path": written, "recipients_problem": None if written else self._problem}

    def _write(self, spool: "Spool", error: Exception | None) -> None:
        target, sent = self._target, self._sent
        # A try that was replaced must not write over its successor's file.
        if target is None or spool.outcomes is None or (sent and isinstance(sent.report.stopped, Fenced)):
            return
        try:
            self._check_goes_on()
            if sent is not None:
                self._write_whole(target, spool, spool.outcomes, sent, error or sent.report.stopped)
                self._is_written = True
        except _Stopped:
            self._problem = ENDED
        except Exception as failure:  # noqa: BLE001 -- whatever storage it is: what was sent is sent
            self._problem = f"it could not be written ({code_of(failure)})"
            self._log.error(
                "The recipients could not be written to %s (%s: %s). What was sent is not affected: clear the task, "
                "and it writes the file without sending again what was accepted",
                target.text,
                type(failure).__name__,
                failure,
            )
            return
        if self._is_written:
            self._log.info("The outcome of each row of the source is written to %s", target.text)
        else:
            self._log.warning("%s was not written: %s", target.text, self._problem)

    def _write_whole(
        self, target: Target, spool: "Spool", outcomes: "Outcomes", sent: "Sent", stopped: Exception | None
    ) -> None:
        counts: Counter[str] = Counter()
        unsent = Outcome(NOT_SENT, code=code_of(stopped), reason=str(stopped)) if stopped else DRY_RUN
        rows = self._counted(outcomes.rows(spool.bodies(), unsent), counts)
        aside = target.beside(NOT_IN_SOURCE)
        gone = [(aside, aside.format.written(Gone._fields, outcomes.gone()))] if _count_gone(outcomes, counts) else []
        buckets = sent.buckets.as_dict()

        def pieces() -> Iterator[bytes]:
            yield from checked_every_piece(target.format.written(Told._fields, rows), self._check_goes_on)
            _check(counts, buckets)

        write_whole([*gone, (target, pieces())])
        if not gone:
            aside.remove()

    def _counted(self, rows: Iterator[Told], counts: Counter[str]) -> Iterator[Told]:
        for row in rows:
            counts[row.bucket] += 1
            yield row

    def _check_goes_on(self) -> None:
        if self._is_stopped():
            raise _Stopped


class _Stopped(Exception):
    """The task was told to stop: what was begun is discarded."""


def _count_gone(outcomes: "Outcomes", counts: Counter[str]) -> int:
    """Count the recipients that are no longer in the source; return how many there are."""
    total = 0
    for gone in outcomes.gone():
        counts[gone.bucket] += gone.recipients
        total += gone.recipients
    return total


def _check(counts: Mapping[str, int], buckets: Mapping[str, int]) -> None:
    """Raise unless the file tells what the report does."""
    found = {**{name: counts.get(name, 0) for name in buckets}, "read": sum(counts.values())}
    if found != buckets:
        raise ResponsysError(f"a defect of this package: the rows of the file are {found}, and the report is {buckets}")
