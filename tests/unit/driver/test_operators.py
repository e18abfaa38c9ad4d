"""`explain`, as `compare --explain` calls it: two Subjects, real workers."""

import shutil
from pathlib import Path

import pytest

from petra_deploy.core.errors import BadInput
from petra_deploy.core.request import Request
from petra_deploy.core.store import Store
from petra_deploy.core.workload import ModelSource
from petra_deploy.driver.operators import explain, profiled_of
from petra_deploy.driver.place import find
from petra_deploy.driver.session import open_session
from petra_deploy.driver.subject import Rows, take
from tests.shipments import write_model
from tests.unit.worker.nets import add_graph


def test_two_subjects_are_fed_alike_and_only_layers_that_lost_are_named(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    shutil.copy(store.path(add_graph(store, (8, 8)).key) / "model.onnx", model)
    write_model(tmp_path / "other.onnx", 0)
    request = Request(model=ModelSource(path=str(model)))
    with open_session(request, tmp_path / "logs", lambda _: None) as session:
        place = find("cpu")
        base, new, other = (
            take(tmp_path / name, place, session, Rows()) for name in ("net.onnx", "net.onnx", "other.onnx")
        )
        assert all(change.slower and change.base and change.new for change in explain(base, new, session))
        profiled = profiled_of(None, new, session, batch=3)
        assert (profiled.base, profiled.engine.batch) == (None, 3)
        assert len(profiled.engine.whole_us) == 8
        with pytest.raises(BadInput, match="they cannot be fed alike"):
            explain(other, new, session)
