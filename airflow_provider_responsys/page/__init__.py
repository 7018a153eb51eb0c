"""The page of the pushes in Airflow's UI: it shows what the ledger and Airflow know, and changes nothing."""
