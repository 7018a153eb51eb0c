"""The table of recipients that benchmarks read: five columns, about 200 bytes a recipient in a request."""

import json
from contextlib import closing
from time import perf_counter

import sqlalchemy

SELECT = "SELECT customer_id, first_name, city, code, points FROM people"
CHUNK_ROWS = 2_000

CREATE = "CREATE TABLE people (customer_id TEXT, first_name TEXT, city TEXT, code TEXT, points REAL)"
# In the words that SQLite and PostgreSQL share.
FILL = """
    INSERT INTO people
    WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {rows})
    SELECT 'C' || substr(CAST(1000000000 + n AS TEXT), 2), 'Zoë ' || n, 'São Paulo', 'WELCOME' || (n % 97), n / 2.0
    FROM numbers
"""


def customer(number: int) -> str:
    """Return the customer id of row *number*."""
    return f"C{number:09}"


def make_table(url: str, rows: int) -> None:
    """Make the table in the database at *url*."""
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection = connection.execution_options(no_parameters=True)  # noqa: PLW2901 -- the same, and a % is a %
        connection.exec_driver_sql(CREATE)
        connection.exec_driver_sql(FILL.format(rows=rows))
    engine.dispose()


def bare(url: str) -> float:
    """Return the rows a second of fetchmany and json.dumps, and nothing else: what all else is compared with."""
    engine = sqlalchemy.create_engine(url)
    # Only a cursor with a name leaves the rows on a PostgreSQL server until they are fetched.
    name = {"name": "bare"} if engine.dialect.name == "postgresql" else {}
    count = 0
    with closing(engine.raw_connection()) as connection:
        began = perf_counter()
        cursor = connection.cursor(**name)
        cursor.execute(SELECT)
        while rows := cursor.fetchmany(CHUNK_ROWS):
            count += sum(1 for row in rows if json.dumps(row))
        took = perf_counter() - began
        cursor.close()
    engine.dispose()
    return count / took
