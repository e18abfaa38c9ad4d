import pytest

from petra_deploy.core.arguments import model_source
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
