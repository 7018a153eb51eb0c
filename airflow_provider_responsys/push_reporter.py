"""What one try of a push tells Airflow: its result in XCom, and its doubts in the log."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from airflow_provider_responsys.errors import Fenced, StateLost
from airflow_provider_responsys.protocol.sizes import runs
from airflow_provider_responsys.sending.outcome import Sent
from airflow_provider_responsys.sending.verdict import doubt_line, problem_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class PushReporter:
    """Reports one try of a push once, whichever thread does it.

    *context* is the task's; *record* says whether a SQL ledger lets people resolve doubts;
    *told_of_files* returns what the result tells of the files that were asked for.
    """

    def __init__(
        self,
        context: "Context",
        log: Any,
        *,
        campaign_name: str,
        send_key: str,
        record: Literal["sql", "none"],
        told_of_files: Callable[[], Mapping[str, str | None]],
    ) -> None:
        self.known: Callable[[], Sent] | None = None
        """Returns what was sent, as far as it is known. None where nothing is."""
        self.left_behind = False
        """Whether the report was made without the sender, which hangs: what it would report later is dropped."""
        self._ti = context["ti"]
        self.log = log
        self._campaign_name = campaign_name
        self._send_key = send_key
        self._record: Literal["sql", "none"] = record
        self._told_of_files = told_of_files
        self._reporting = threading.RLock()
        self._reported = False

    def result(self, sent: Sent, *, problem: str | None = None, dry_run: bool = False) -> dict[str, Any]:
        """Return what the task reports."""
        self.log.info("Campaign %s%s: %s", self._campaign_name, " (dry run)" if dry_run else "", sent.buckets)
        return {
            "campaign_name": self._campaign_name,
            "send_key": self._send_key,
            "dry_run": dry_run,
            "request_ids": sent.request_ids,
            "request_sizes": runs(sent.request_sizes),
            "recipients": sent.buckets.as_dict(),
            "problem": problem,
            **self._told_of_files(),
        }

    def push(self, result: dict[str, Any]) -> None:
        """Push the *result* of a try that fails."""
        with self._reporting:
            if self.left_behind:
                return  # it is pushed already, and another try may have begun
            for name, value in {**result, "return_value": result}.items():
                self._ti.xcom_push(key=name, value=value)
            self._reported = True

    def push_known(self, error: BaseException) -> None:
        """Push what is known where a try fails with *error* before, or beside, its send."""
        try:
            sent = self.known() if self.known else None
            if sent:
                self.log_doubts(sent)
            problem = problem_of(error, sent, first=self._ti.try_number == 1)
            self.push(self.result(sent or Sent.nothing(), problem=problem))
        except Exception:  # the failure that led here says more
            self.log.exception("What was sent could not be reported")

    def leave_behind(self, error: BaseException) -> NoReturn:
        """Report what is known without the sender, which hangs, and raise *error*."""
        with self._reporting:  # where the sender is about to report, its report is waited for, and is the only one
            if not self._reported:
                self.push_known(error)
            self.left_behind = True
        raise error

    def look_back(self, error: Exception) -> None:
        """Find out, while the ledger is open, what is known where a try fails with *error* before its send."""
        known = None
        try:
            # A try that was replaced reports nothing, and a record that is lost may tell nothing.
            if self.known and not isinstance(error, Fenced):
                known = self.known()
            if isinstance(error, StateLost) and known and not known.buckets.read:
                known = None
        except Exception:  # the failure that led here says more
            self.log.exception("What earlier tries sent could not be read from the ledger")
        self.known = (lambda: known) if known else None

    def log_doubts(self, sent: Sent) -> None:
        """Log each batch in doubt, and what a person types to resolve it."""
        for doubt in sent.doubts:
            self.log.error("%s", doubt_line(doubt, self._send_key, self._record))
