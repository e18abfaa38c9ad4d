from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core import machine, metrics
from petra_deploy.core.job import Build, Scored
from petra_deploy.core.outcome import Engine, Failed
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.workload import MetricSpec, Split
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.jobs.score import read_outputs
from tests.unit.worker.nets import CPU, add_graph, add_split, signature


def engine(store: Store, **options: object) -> Engine:
    return Inline(store).must(Build(graph=add_graph(store, **options), target=CPU))  # type: ignore[arg-type]


def job(one: Engine, split: Split, metric: MetricSpec | str = "accuracy", reference: str | None = None) -> Scored:
    spec = metrics.SPECS[metric] if isinstance(metric, str) else metric
    return Scored(
        engine=one, target=CPU, split=split, split_name="selection", metric=spec, signature=signature(),
        reference=reference,
    )  # fmt: skip


def test_the_score_is_the_metric_of_the_outputs_that_are_kept(store: Store) -> None:
    split = add_split(store, 70)
    score = Inline(store).must(job(engine(store), split))
    outputs = read_outputs(store.path(score.outputs))
    labels = Samples.open(store.path(split.key)).target
    assert outputs["logits"].shape == (70, 4)
    assert score.value == pytest.approx(np.mean(outputs["logits"].argmax(1) == labels))
    assert (score.n, score.split, score.drop, score.baseline) == (70, "selection", None, None)


def test_the_drop_from_a_reference_is_paired_and_in_points(store: Store) -> None:
    split, run = add_split(store, 70), Inline(store)
    before = run.must(job(engine(store), split))
    after = run.must(job(engine(store, seed=3), split, reference=before.outputs))
    assert after.baseline == before.value
    assert after.drop is not None
    assert after.drop.known() == pytest.approx(100 * (before.value - after.value))
    assert after.drop_error > 0
    same = run.must(job(engine(store), split, reference=before.outputs))
    assert same.drop is not None
    assert same.drop.value == 0.0
    assert same.drop_error > 0


def test_agreement_needs_no_labels_and_is_one_for_the_original(store: Store) -> None:
    split, run = add_split(store, 40, labelled=False), Inline(store)
    before = run.must(job(engine(store), split, "agreement"))
    assert before.value == 1.0
    after = run.must(job(engine(store, seed=3), split, "agreement", before.outputs))
    assert after.baseline == 1.0
    assert after.value < 1.0
    assert after.drop is not None
    assert after.drop.known() == pytest.approx(100 * (1 - after.value))


def test_a_fixed_batch_is_filled_up_and_its_filling_cut_off(store: Store) -> None:
    split, run = add_split(store, 41), Inline(store)
    fixed, free = run.must(job(engine(store, batch=4), split)), run.must(job(engine(store), split))
    a, b = (read_outputs(store.path(score.outputs))["logits"] for score in (fixed, free))
    assert a.shape == (41, 4)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_number_of_cores_changes_no_score(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    split, one = add_split(store, 70), engine(store, widths=(32, 32))
    scores = []
    for cores in (1, 3):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: cores)
        scores.append(Inline(store).must(job(one, split)))
    a, b = (read_outputs(store.path(score.outputs))["logits"] for score in scores)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert scores[0].value == scores[1].value


def test_an_output_that_is_not_finite_has_diverged(store: Store) -> None:
    failed = Inline(store)(job(engine(store, last="Log"), add_split(store)))
    assert isinstance(failed, Failed)
    assert failed.kind == "diverged"
    assert "output 'logits' is NaN or infinite in" in failed.reason


def test_labels_that_are_missing_or_out_of_range_are_said(store: Store) -> None:
    failed = Inline(store)(job(engine(store), add_split(store, labelled=False)))
    assert isinstance(failed, Failed)
    assert "needs labels" in failed.reason
    samples = Samples({"image": np.ones((5, 3, 8, 8), np.float32)}, np.array([0, 1, 2, 3, 9]))
    failed = Inline(store)(job(engine(store), Split(key=store.add(samples.save), rows=5, labelled=True)))
    assert isinstance(failed, Failed)
    assert "label 9" in failed.reason


def test_a_users_metric_that_raises_is_told_with_its_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def strict(outputs, targets):\n    return outputs['missing']\n")
    spec = replace(metrics.SPECS["accuracy"], name=f"{tmp_path}/own.py:strict")
    failed = Inline(store)(job(engine(store), add_split(store), spec))
    assert isinstance(failed, Failed)
    assert failed.kind == "input"
    assert "own.py:2 (return outputs['missing'])" in failed.reason
