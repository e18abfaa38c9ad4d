from pathlib import Path

import pytest

from petra_deploy.core.errors import BadInput
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.driver.bundle import recipe


def test_a_strategy_written_by_hand_is_a_recipe_without_promises(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"steps": [{"technique": "quantize_ort"}]}')
    read = recipe.read(path)
    assert read.strategy.steps == (Step(technique="quantize_ort"),)
    assert read.promise is None
    assert read.architecture is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema": "petra-deploy/strategy/7", "strategy": {}}', "strategy/7"),
        ('{"steps": [{"technik": "prune"}]}', "technik"),
        ('{"steps": "prune"}', "steps"),
        ("[]", "mine.json"),
        ("{", "not valid JSON"),
    ],
)
def test_what_is_no_strategy_is_refused_with_the_place(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=said):
        recipe.read(path)


def test_the_metric_is_kept_unless_it_is_code() -> None:
    assert recipe.Recipe(strategy=Strategy(), metric="auc").known_metric("data.npz") == "auc"
    assert recipe.Recipe(strategy=Strategy()).known_metric("data.npz") is None
    own = recipe.Recipe(strategy=Strategy(), metric="/tmp/score.py:recall")
    assert own.known_metric("workload.py") is None  # which names its own
    with pytest.raises(BadInput, match="which is code"):
        own.known_metric("data.npz")
