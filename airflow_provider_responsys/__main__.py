"""The ledger's command line without Airflow's own: ``python -m airflow_provider_responsys``."""

import sys

from airflow_provider_responsys.cli import main

if __name__ == "__main__":
    sys.exit(main())
