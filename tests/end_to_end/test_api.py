"""The three lines of Python, with a model, data and a metric that exist in memory only."""

import json
import subprocess
import sys

SCRIPT = """
import json
import numpy as np
import torch
import petra_deploy
from net import build

model = build()
model.load_state_dict(torch.load("model.pt", weights_only=True))
data = {name: rows[:600] for name, rows in np.load("data.npz").items()}


def wrong(outputs, targets):
    return float((outputs.argmax(1) != targets).mean())


wrong.higher_is_better = False
wrong.bounded = True

if __name__ == "__main__":
    result = petra_deploy.optimize(model, data=data, target="cpu", max_drop=5.0, metric=wrong, objective="size",
                                   trials=1, time="3m", batches=(1,), out="run-python")
    (answer,) = petra_deploy.load_bundle(result.bundle).run({"image": data["image"][:8]}).values()
    print(json.dumps({"shape": answer.shape, "trials": len(result.trials), "front": len(result.front.outcomes),
                      "metric": result.manifest.metric.name, "baseline": result.manifest.metric.baseline,
                      "speedup": result.manifest.speedup.value}))
"""


def test_a_model_data_and_metric_in_memory(place):
    (place.folder / "run.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "run.py"], cwd=place.folder, env=place.environment(), capture_output=True,
                          text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["shape"] == [8, 10]
    assert said["trials"] == 1
    assert said["front"] >= 1
    assert said["metric"].endswith(":wrong")
    assert 0 <= said["baseline"] < 0.5  # of labels wrong: more would be worse
    assert said["speedup"] > 1


def test_what_is_no_metric_is_refused(place):
    script = (
        'import petra_deploy\npetra_deploy.optimize("model.pt", model_factory="net.py:build", metric=3, out="run-x")'
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=place.folder, env=place.environment(),
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert "3 is no metric" in done.stderr
