"""Runs conversations with Responsys: on requests in a worker, on aiohttp in the triggerer."""
