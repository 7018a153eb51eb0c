"""What Responsys accepts and answers, written once: no I/O, clock, chance, logging or Airflow."""
