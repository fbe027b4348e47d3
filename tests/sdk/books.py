"""Looks into Tollgate's tables by plain SQL, on SQLite and on PostgreSQL alike."""

import sqlite3
import time
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

# For a settlement to be committed after its answer has ended.
SETTLE_SECONDS = 20


class Sqlite:
    """A fresh file."""

    def __init__(self, folder: Path):
        self.path = folder / "tollgate.db"
        self.url = f"sqlite://{self.path}"

    def rows(self, sql: str, *values) -> list[dict]:
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=10)
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]
        finally:
            connection.close()

    def change(self, sql: str, *values) -> None:
        connection = sqlite3.connect(self.path, timeout=10)
        try:
            with connection:
                connection.execute(sql, values)
        finally:
            connection.close()

    def drop(self) -> None:
        """Its folder goes with the test run."""


class Postgres:
    """A fresh database in the cluster of the test run."""

    def __init__(self, admin_url: str):
        self.admin_url = admin_url
        self.name = f"tollgate_sdk_{uuid4().hex[:12]}"
        self.url = admin_url.rpartition("/")[0] + f"/{self.name}"
        self._admin(f'CREATE DATABASE "{self.name}"')

    def rows(self, sql: str, *values) -> list[dict]:
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            rows = connection.execute(sql.replace("?", "%s"), values).fetchall()
        # SQLite keeps ids as text.
        return [{k: str(v) if isinstance(v, UUID) else v for k, v in row.items()} for row in rows]

    def change(self, sql: str, *values) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(sql.replace("?", "%s"), values)

    def drop(self) -> None:
        self._admin(f'DROP DATABASE "{self.name}" WITH (FORCE)')

    def _admin(self, sql: str) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(sql)


class Books:
    """What one account's rows say."""

    def __init__(self, database: Sqlite | Postgres, account: str):
        self.database, self.account = database, account

    def records(self) -> list[dict]:
        sql = "SELECT * FROM usage_records WHERE account_id = ? ORDER BY id"
        return self.database.rows(sql, self.account)

    def entries(self) -> list[dict]:
        sql = "SELECT * FROM ledger_entries WHERE account_id = ? ORDER BY seq"
        return self.database.rows(sql, self.account)

    def holds(self) -> list[dict]:
        return self.database.rows("SELECT * FROM holds WHERE account_id = ?", self.account)

    def account_row(self) -> dict:
        (row,) = self.database.rows("SELECT * FROM accounts WHERE id = ?", self.account)
        return row

    def settled(self, count: int) -> list[dict]:
        """The account's records once there are so many of them, and no open hold."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            if len(self.records()) >= count and not self.holds():
                break
            time.sleep(0.02)
        records = self.records()
        assert len(records) == count, f"{len(records)} records instead of {count}: {records}"
        return records

    def check(self) -> None:
        """What must be true of the books whenever nothing is under way."""
        account, entries, records = self.account_row(), self.entries(), self.records()
        assert self.holds() == []
        assert account["held_nusd"] == 0
        assert account["balance_nusd"] == sum(entry["amount_nusd"] for entry in entries)
        assert account["balance_nusd"] >= 0, "more was spent than there was"
        charges = {e["request_id"]: -e["amount_nusd"] for e in entries if e["kind"] == "charge"}
        charged = {r["id"]: r["charge_nusd"] for r in records}
        assert charges == charged, "every record has its one entry, and the other way round"
        assert all(record["shortfall_nusd"] == 0 for record in records)
        sql = "SELECT * FROM billing_events WHERE account_id = ?"
        assert self.database.rows(sql, self.account) == [], "no sink is configured"
