"""Fixtures of several rooms: a store of the test's own, and something to put in a bundle."""

from pathlib import Path

import pytest

from petra_deploy.core.store import Store
from petra_deploy.driver.bundle.write import Shipment


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def shipment(store: Store, tmp_path: Path) -> Shipment:
    from tests.shipments import make_shipment

    return make_shipment(store, tmp_path)
