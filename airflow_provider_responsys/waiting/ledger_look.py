"""What a worker does with the ledger while it polls: as `recorder` does in the triggerer, and in the same words."""

from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_responsys.errors import LedgerFailed, LedgerUnreachable
from airflow_provider_responsys.protocol.polling import Outcome
from airflow_provider_responsys.waiting.records import RequestRecords, log_unwritten
from airflow_provider_responsys.waiting.state import WaitState


class LedgerLook:
    """Reads from the ledger what is known of requests, and writes outcomes to it, where there is one.

    *opened* returns what reads and writes it, None where there is none. *unread* is
    why it can't be used now, and *refused* why it will not be of use later, either.
    """

    def __init__(self, opened: Callable[[], RequestRecords | None], log: Any) -> None:
        self._opened = opened
        self._log = log
        self.records: RequestRecords | None = None
        self.unread: LedgerFailed | None = None
        self.refused: LedgerFailed | None = None

    @property
    def is_read(self) -> bool:
        """Whether there is a ledger that has told what it knows."""
        return self.records is not None and self.unread is None

    def consult(self, state: WaitState) -> None:
        """Let the ledger tell *state* what it knows, if there is one and it can be read."""
        if self.is_read or self.refused:
            return
        try:
            self.records = self.records or self._opened()
            if self.records is None:
                return
            self.records.polls = state.polls
            self.records.read()
        except LedgerFailed as error:
            self.unread = error
            if isinstance(error, LedgerUnreachable):
                self._log.warning("The ledger can't be read at the moment, trying again later: %s", error)
            else:
                self.refused = error
                self._log.error("The ledger can't be read: %s. The wait goes on, then fails", error)
            return
        self.unread = None
        state.learn(self.records)
        if unknown := sum(not self.records.knows(request_id) for request_id in state.asked):
            self._log.warning(
                "The ledger does not know %d of %d requests: their outcomes are counted, and not written there",
                unknown,
                state.results.total,
            )

    def record(self, outcomes: Mapping[str, Outcome]) -> None:
        """Write *outcomes* to the ledger, if there is one that can be reached; otherwise later."""
        if self.records is None or not outcomes:
            return
        self.records.note(outcomes)
        if not self.unread and (failure := self.records.write()):
            self.unread = failure
            if isinstance(failure, LedgerUnreachable):
                self._log.warning("The ledger can't be written at the moment, trying again later: %s", failure)
            else:
                self.refused = failure
                self._log.error("The ledger takes no outcomes: %s. The wait goes on, then fails", failure)

    def write_the_rest(self) -> None:
        """Write the outcomes that could not be written so far, if the ledger can be reached by now."""
        if self.records is not None and self.records.unwritten and not self.refused:
            self.records.write()

    def task_instances(self, state: WaitState) -> list[str]:
        """Return the task instances by which the ledger finds exactly what was asked for, if there are such."""
        if self.records is None or self.unread or not all(map(self.records.knows, state.asked)):
            return []
        task_instances = self.records.task_instances(state.asked)
        return task_instances if set(self.records.of(task_instances)) == set(state.asked) else []

    def close(self) -> None:
        """Write what is left, and close the connections."""
        records, self.records = self.records, None
        if records is not None:
            if records.unwritten and (failure := records.write()):
                log_unwritten(self._log, records.unwritten, failure)
            records.close()
