"""Facts about a root directory."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orlop.core.metadata import Database
from orlop.core.metadata.facts import server_uuid


def test_who_asks_first_makes_the_uuid_and_all_get_it(tmp_path: Path) -> None:
    with Database(tmp_path / "meta.db") as db, ThreadPoolExecutor(4) as threads:
        found = {*threads.map(lambda _number: server_uuid(db), range(16))}
    with Database(tmp_path / "meta.db") as db:
        assert found == {server_uuid(db)}
