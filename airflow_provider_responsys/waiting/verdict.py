"""Why a wait fails when all its requests have ended, in counts and codes."""

from collections.abc import Collection, Mapping

from airflow_provider_responsys.protocol.polling import ROWS_DIFFER
from airflow_provider_responsys.protocol.results import Results
from airflow_provider_responsys.waiting.state import DIFFERENT


def problems(results: Results, *, expected_errors: Collection[str], max_failed: float) -> list[str]:
    """Return why *results* are a failure; *max_failed* is a count of recipients, or, below 1, a part of the known."""
    found = []
    if lost := results.failed + results.unknown:
        errors = {code: number for code, number in results.request_errors.items() if code != ROWS_DIFFER}
        found.append(f"{lost} of {results.total} requests ended without results ({codes(errors)})")
    if different := results.request_errors[ROWS_DIFFER]:
        found.append(
            f"{different} of {results.total} requests have more or fewer results than recipients ({ROWS_DIFFER}): "
            f"{DIFFERENT}"
        )
    failures = {code: number for code, number in results.errors.items() if code not in expected_errors}
    failed = sum(failures.values())
    known = results.recipients_succeeded + results.recipients_failed
    tolerated = max_failed * known if max_failed < 1 else max_failed
    if failed > tolerated:
        found.append(f"{failed} of {known} recipients failed ({codes(failures)}), {int(tolerated)} are tolerated")
    return found


def codes(counts: Mapping[str, int]) -> str:
    """Return *counts* by code for a message, the largest first."""
    return ", ".join(
        f"{code}: {number}" for code, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
