"""What Airflow is told about this provider: names and the connection form, nothing to import."""

from typing import Any

from airflow_provider_responsys import __version__

PACKAGE = "airflow_provider_responsys"
NAME = "Oracle Responsys"
CONNECTION_TYPE = "responsys"

CONNECTION_FIELDS: dict[str, dict[str, Any]] = {
    "api": {
        "label": "API family",
        "description": (
            "haAsyncApi keeps working while the account runs on its secondary server (AFTM). asyncApi polls up to "
            "200 requests at once, and is not available then."
        ),
        "schema": {"type": ["string", "null"], "enum": ["haAsyncApi", "asyncApi"], "default": "haAsyncApi"},
    },
    "auth_type": {
        "label": "Authentication",
        "description": "How the API user logs in.",
        "schema": {"type": ["string", "null"], "enum": ["password"], "default": "password"},
    },
    "push_requests_per_minute": {
        "label": "Push requests per minute",
        "description": (
            "At most this many requests, of up to 200 recipients each, leave in a minute. "
            "Empty: as many as Responsys says that the account may send, or 200 if it does not say."
        ),
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "poll_requests_per_minute": {
        "label": "Poll requests per minute",
        "description": (
            "At most this many polls for results are sent in a minute. "
            "Empty: as many as Responsys says that the account may send, or 200 if it does not say."
        ),
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "timeout": {
        "label": "Answer timeout (seconds)",
        "description": "How long to wait for an answer. A push that is not answered in this time is in doubt.",
        "schema": {"type": ["number", "null"], "minimum": 1, "default": 60},
    },
    # Not a boolean: a switch cannot be left empty, and empty has a meaning of its own.
    "follow_endpoint": {
        "label": "Follow the endpoint",
        "description": (
            "Whether to send requests to the host that the login names, or to keep to the login URL. "
            "Empty: false for haAsyncApi, true for asyncApi."
        ),
        "schema": {"type": ["string", "null"], "enum": ["true", "false"]},
    },
    "dry_run": {
        "label": "Dry run",
        "description": "Push nothing through this connection, whatever the tasks say: for copies of production.",
        "schema": {"type": ["boolean", "null"], "default": False},
    },
}
"""The connection's extras. `protocol.account` reads them."""

FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema", "port", "extra"],
    "relabeling": {"host": "Login URL", "login": "API user", "password": "Password"},
    "placeholders": {
        "host": "https://login5.responsys.net, or the account's own AFTM host",
        "login": "the API user's name",
        "password": "the API user's password",
        "push_requests_per_minute": "the account's own limit",
        "poll_requests_per_minute": "the account's own limit",
        "timeout": "60",
        "follow_endpoint": "false for haAsyncApi, true for asyncApi",
    },
}
"""How the form shows a connection's standard fields, and what it suggests."""


def get_provider_info() -> dict[str, Any]:
    """Return what Airflow lists and shows of this provider."""
    return {
        # The distribution's canonical name, with hyphens: with another, every `airflow providers` command dies.
        "package-name": "airflow-provider-responsys",
        "name": NAME,
        "description": "Trigger `Oracle Responsys <https://www.oracle.com/cx/marketing/campaign-management/>`__ push "
        "campaigns: every recipient at most once, every recipient accounted for.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": NAME,
                "external-doc-url": "https://docs.oracle.com/en/cloud/saas/marketing/responsys-rest-api/",
                "tags": ["service"],
            }
        ],
        "hooks": _modules("hooks"),
        "operators": _modules("operators"),
        "sensors": _modules("sensors"),
        "triggers": _modules("triggers"),
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": f"{PACKAGE}.hooks.ResponsysHook",
                "hook-name": NAME,
                "ui-field-behaviour": FIELD_BEHAVIOUR,
                "conn-fields": CONNECTION_FIELDS,
            }
        ],
        "extra-links": [f"{PACKAGE}.links.PushReportLink", f"{PACKAGE}.links.WaitReportLink"],
        # Airflow 3.2 and newer; older ones take no notice of it.
        "cli": [f"{PACKAGE}.cli.get_cli_commands"],
        "config": {
            "responsys": {
                "description": "How the Responsys provider behaves where a task does not say otherwise.",
                "options": {
                    "ledger_conn_id": {
                        "description": "The connection of the SQL database that remembers who has been pushed, "
                        "across tasks and runs. Empty: each task remembers its own in Airflow's task state store.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "responsys_ledger",
                        "default": "",
                    }
                },
            }
        },
    }


def _modules(kind: str) -> list[dict[str, Any]]:
    return [{"integration-name": NAME, "python-modules": [f"{PACKAGE}.{kind}"]}]
