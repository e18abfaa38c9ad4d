import subprocess
import sys

import pytest

from petra_deploy.core.arguments import data_source, model_source
from petra_deploy.core.errors import BadInput


def test_a_workload_file_may_bring_the_model():
    source = model_source(None, None, False, "workload.py")
    assert (source.path, source.factory) == (None, None)


@pytest.mark.parametrize("data", [None, "data.npz", ([1], [2])])
def test_without_a_model_the_hint_says_where_one_may_come_from(data):
    with pytest.raises(BadInput, match="no model was given") as caught:
        model_source(None, None, False, data)
    assert "--model" in caught.value.hint
    assert "workload.py" in caught.value.hint


def test_a_module_in_memory_is_vouched_for_by_its_process():
    assert model_source(object(), None, False, None).cloudpickled


def test_code_beside_the_script_travels_with_what_is_handed_over(tmp_path, monkeypatch):
    """The worker has neither the script's folder on its path, nor the current one."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "rows_of_mine.py").write_text("def rows():\n    return [1, 2, 3]\n")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    rows = __import__("rows_of_mine").rows
    path = data_source(rows, None, None, None, tmp_path / "out").path
    read = f"import cloudpickle; print(cloudpickle.load(open({path!r}, 'rb'))())"
    done = subprocess.run([sys.executable, "-c", read], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "[1, 2, 3]\n", done.stderr
