"""Why a task fails."""

from collections import Counter

import pytest

from airflow_provider_responsys.errors import (
    LedgerFailed,
    NotAllSent,
    ResponsysError,
    SendRefused,
    StateLost,
    TooManyInDoubt,
)
from airflow_provider_responsys.sending.outcome import Buckets, Sent
from airflow_provider_responsys.sending.run import Doubt, Report
from airflow_provider_responsys.sending.verdict import doubt_line, judge, problem_of


def sent(stopped: ResponsysError | None = None, *, to_repeat: int = 0, codes: str = "", **counts: int) -> Sent:
    """Return what a send has come to: *counts* by bucket."""
    rejected = Counter({codes: counts.get("rejected", 0)}) if codes else Counter()
    report = Report(0, rejected=rejected, stopped=stopped, to_repeat=to_repeat)
    return Sent(Buckets(read=sum(counts.values()), **counts), report, [], [], [])


@pytest.mark.parametrize(
    ("outcome", "final"),
    [
        (sent(NotAllSent("retry_for"), accepted=1, not_sent=1), False),
        (sent(LedgerFailed("down"), accepted=1, not_sent=1), False),
        (sent(NotAllSent("retry_for"), accepted=1, not_sent=1, in_doubt=1, rejected=1, codes="C"), False),
        (sent(NotAllSent("killed"), accepted=1, in_doubt=1, to_repeat=1), False),
        (sent(SendRefused("no"), accepted=1, not_sent=1), True),
        (sent(SendRefused("no"), rejected=1, codes="C"), True),
        (sent(TooManyInDoubt("200"), accepted=1, not_sent=1, in_doubt=1), True),
        (sent(accepted=1, rejected=1, codes="C"), True),
        (sent(accepted=1, in_doubt=1), True),
    ],
)
def test_what_may_pass_is_retried_first(outcome: Sent, final: bool) -> None:
    """Only when all else is sent, a failure that no retry helps is final."""
    verdict = judge("Summer", outcome, on_in_doubt="fail")

    assert verdict is not None
    assert verdict.final is final
    assert str(outcome.buckets) in verdict.message
    assert str(outcome.buckets) in verdict.problem


@pytest.mark.parametrize("stopped", [None, NotAllSent("killed at its end"), TooManyInDoubt("at its end")])
def test_doubt_may_be_tolerated_where_all_else_was_sent(stopped: ResponsysError | None) -> None:
    """The last lost answer stopped nothing, whatever it reached."""
    assert judge("Summer", sent(stopped, accepted=1, in_doubt=1), on_in_doubt="continue") is None


def test_a_problem_is_counts_and_codes_alone() -> None:
    """What an error says is for the log: it may quote a database, which may quote a recipient."""
    failed = SendRefused("anna@example.com is unheard of", code="CAMPAIGN_NOT_FOUND")

    verdict = judge("Summer", sent(failed, accepted=1, not_sent=2), on_in_doubt="fail")

    assert verdict is not None
    assert verdict.problem == "1 of 3 accepted, 2 not sent: CAMPAIGN_NOT_FOUND"


@pytest.mark.parametrize(
    ("known", "first", "says"),
    [
        (None, True, "StateLost"),
        (None, False, "what earlier tries sent is not known: StateLost"),
        (sent(accepted=2), False, "2 of 2 accepted: StateLost"),
    ],
)
def test_a_try_that_fails_before_it_sends_says_what_it_knows(known: Sent | None, first: bool, says: str) -> None:
    """Nothing is known, and only after a first try that means something."""
    assert problem_of(StateLost("gone"), known, first=first) == says


def test_a_doubt_names_what_to_type() -> None:
    """With a SQL ledger a command, without one what Oracle's support asks for."""
    doubt = Doubt("batch 4", 1_000, "reset", batch_id=1982616501582642996)

    sql, none = (doubt_line(doubt, "autumn", record) for record in ("sql", "none"))
    unknown = doubt_line(Doubt("try 1, batch 4", 200, "reset"), "autumn", "sql")

    assert "airflow responsys settle 1982616501582642996 --not-sent (or --sent)" in sql
    assert "send 'autumn' (1,000 recipients): reset" in sql
    assert "X-Request-Id 1982616501582642996" in none
    assert unknown == "In doubt: try 1, batch 4 of send 'autumn' (200 recipients): reset"
