import subprocess
import sys

import pytest

from petra_deploy.core.arguments import data_source, model_source, place
from petra_deploy.core.errors import BadInput
from petra_deploy.core.request import Remote


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


@pytest.mark.parametrize(
    ("target", "remote", "python", "expected"),
    [
        ("cpu", None, None, ("cpu", None)),
        ("t4", "box", None, ("t4", Remote(host="box"))),
        ("t4", "me@10.0.0.7:2222", "/v/py", ("t4", Remote(host="me@10.0.0.7", port=2222, python="/v/py"))),
        ("ssh://me@box/t4", None, None, ("t4", Remote(host="me@box"))),
        ("ssh://box:22/cpu?python=~/v/py", None, None, ("cpu", Remote(host="box", port=22, python="~/v/py"))),
        ("t4", "me@[fe80::1]:22", None, ("t4", Remote(host="me@[fe80::1]", port=22))),
    ],
)  # fmt: skip
def test_a_machine_is_named_in_one_word_or_in_three(target, remote, python, expected):
    assert place(target, remote, python) == expected


@pytest.mark.parametrize(
    ("target", "remote", "python"),
    [
        ("cpu", "-oProxyCommand=reboot", None),  # ssh would read it as an option
        ("cpu", "me@-oProxyCommand=reboot", None),
        ("cpu", "box;reboot", None),
        ("cpu", "box\nreboot", None),
        ("cpu", "box:0", None),
        ("cpu", "box:99999", None),
        ("cpu", "", None),
        ("cpu", "box", "-c"),
        ("cpu", None, "/v/bin/python"),
        ("ssh://box", None, None),
        ("ssh:///t4", None, None),
        ("ssh://box/t4", "box", None),
        ("ssh://box/t4?pythn=/v", None, None),
    ],
)
def test_what_names_no_machine_is_refused(target, remote, python):
    with pytest.raises(BadInput):
        place(target, remote, python)
