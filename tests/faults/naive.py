"""The baseline: what an operator does that leaves retries to Airflow."""

from typing import Any

from airflow.sdk import BaseOperator

from airflow_provider_responsys.hooks import ResponsysHook
from airflow_provider_responsys.protocol.push import MAX_RECIPIENTS


class NaivePush(BaseOperator):
    """Posts batch by batch; when one fails, it fails, and starts again when Airflow retries it."""

    def __init__(self, *, campaign_name: str, recipients: list[dict[str, str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.campaign_name = campaign_name
        self.recipients = recipients

    def execute(self, context: Any) -> list[str]:
        """Push everybody; return the request ids."""
        with ResponsysHook() as hook:
            return [
                hook.trigger_push(self.campaign_name, self.recipients[first : first + MAX_RECIPIENTS])
                for first in range(0, len(self.recipients), MAX_RECIPIENTS)
            ]
