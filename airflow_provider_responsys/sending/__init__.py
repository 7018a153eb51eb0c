"""The sending engine: batches from the spool are claimed, sent and settled, paced and concurrent.

`engine` decides and does nothing; `run` does what it says and decides nothing.
"""
