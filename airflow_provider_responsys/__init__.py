"""Apache Airflow provider for Oracle Responsys push campaigns."""

__version__ = "0.1.0"
