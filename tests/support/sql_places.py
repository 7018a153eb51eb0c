"""Fixtures of the databases that a ledger can be kept in, for the conftest of each folder that needs them."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from tests.support.places import SqlPlace


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqlPlace]:
    """Give a SQLite file."""
    place = SqlPlace(URL.create("sqlite", database=str(tmp_path / "ledger.db")))
    yield place
    place.close()


@pytest.fixture
def postgresql(postgres: dict[str, str | int]) -> Iterator[SqlPlace]:
    """Give an empty schema of a real PostgreSQL."""
    schema = f"s{uuid4().hex}"
    url = URL.create(
        "postgresql+psycopg",
        query={"host": str(postgres["host"]), "port": str(postgres["port"])},
        username=str(postgres["login"]),
        password=str(postgres["password"]),
        database=str(postgres["schema"]),
    )
    place = SqlPlace(url, options=f"-csearch_path={schema}")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    yield place
    place.close()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


@pytest.fixture
def mariadb(mysql: Path) -> Iterator[SqlPlace]:
    """Give an empty database of a real MariaDB."""
    name = f"s{uuid4().hex}"
    server = URL.create("mysql+pymysql", username="root", host="localhost", query={"unix_socket": str(mysql)})
    place = SqlPlace(server.set(database=name))
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield place
    place.close()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}")
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> SqlPlace:
    """Give each database in turn."""
    place: SqlPlace = request.getfixturevalue(request.param)
    return place
