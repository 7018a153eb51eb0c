"""A ledger for the first try where nothing durable is at hand (Airflow < 3.3, no SQL ledger)."""

from collections.abc import Iterable, Mapping, Sequence

from airflow_provider_responsys.errors import StateLost
from airflow_provider_responsys.ledger.fingerprint import new_key
from airflow_provider_responsys.ledger.interface import Claim, Earlier, Settlement, Source, Wanted


class MemoryLedger:
    """Remembers nothing across tries, and therefore refuses to serve a later one.

    *may_have_claimed* says whether an earlier try may have reached ``execute``
    (`tries.may_have_claimed` tells); unless told, a later try assumes so.
    """

    durable = False
    resumes = False
    looks_ahead = False

    def __init__(self, *, try_number: int, may_have_claimed: bool | None = None) -> None:
        self._try_number = try_number
        self._may_have_claimed = try_number > 1 if may_have_claimed is None else may_have_claimed

    def begin(self, identity: Mapping[str, str]) -> bytes:  # noqa: ARG002 -- the interface's; no try will compare it
        """Return a fresh key, or raise `StateLost` where an earlier try may have sent something."""
        if self._may_have_claimed:
            raise StateLost(
                f"This is try {self._try_number}, and nothing remembers whom the earlier ones pushed, so nothing is "
                "sent. Set ledger_conn_id (or [responsys] ledger_conn_id) to a database, or run Airflow 3.3 or newer, "
                "which remembers by itself. That helps the next run; whom this one pushed, only Responsys can say."
            )
        return new_key()

    def compare(self, source: Source) -> None:
        """Do nothing: there is no record."""

    def earlier(self) -> Iterable[Earlier]:
        """Yield nothing: no earlier try got this far."""
        return ()

    def commit(
        self,
        settled: Sequence[Settlement],  # noqa: ARG002 -- the interface's; nothing is kept
        wanted: Sequence[Wanted],
        upcoming: Sequence[Sequence[bytes]] = (),  # noqa: ARG002 -- the interface's; nothing is written in advance
    ) -> list[Claim]:
        """Win every claim."""
        return [Claim(want.number) for want in wanted]

    def name_answer(self, number: int, correlation_id: str) -> None:
        """Do nothing: no one looks doubts up here."""

    def close(self) -> None:
        """Do nothing: nothing is open."""
