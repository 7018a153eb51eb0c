"""What Airflow adds to its UI for this provider: a page in the menu *Browse*, and a tab on each task instance.

Every task loads its plugins. So the page, and the web framework that it stands on,
is imported where Airflow asks for it: in the API server.
"""

from typing import Any

from airflow.plugins_manager import AirflowPlugin

PREFIX = "/responsys"
"""Where Airflow mounts the page, below its own path."""


class ResponsysPlugin(AirflowPlugin):
    """The page of the pushes.

    Addresses are relative, without a leading slash: Airflow's UI resolves them under
    whatever path it runs at.
    """

    name = "responsys"
    external_views = [  # noqa: RUF012 -- Airflow's own form
        {"name": "Responsys pushes", "href": "responsys/pushes", "url_route": "responsys-pushes", "category": "browse"},
        {
            "name": "Push",
            "href": "responsys/push?tab=1&dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}",
            "url_route": "responsys-push",
            "destination": "task_instance",
        },
    ]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # a list in Airflow, and late here
        """Return the page."""
        from airflow_provider_responsys.page.app import app  # noqa: PLC0415 -- see the module

        return [{"app": app, "url_prefix": PREFIX, "name": "Responsys"}]
