"""Waiting for results: which requests are open, when each is polled, what its answer counts for. Free of Airflow.

`engine` decides and does nothing. Two shells do what it says: `watch` in the
triggerer, many polls at a time, and `sweep` in a worker, one after the other. Both
keep what is known in one `state`.
"""
