"""Rates are found again from times that were made of them; real graphs run and are counted whole."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from petra_deploy.core.job import Rates
from petra_deploy.core.machine import resolve
from petra_deploy.core.outcome import Attained, Work
from petra_deploy.core.store import Store
from petra_deploy.core.target import Computing, Moving, Starting, Target
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.measure import attained, predicted, rates
from petra_deploy.worker.measure.rates import NAMES, Sample
from tests.unit.worker.nets import CPU

KNOWN: dict[str, dict[str, float]] = {
    "attained_gops": {key: 50.0 + 10 * i for i, key in enumerate(get_args(Computing))},
    "attained_gb_s": {key: 10.0 + 5 * i for i, key in enumerate(get_args(Moving))},
    "operator_us": {key: 0.5 + 0.3 * i for i, key in enumerate(get_args(Starting))},
}
MACHINE = Target(name="known", runtime="onnxruntime", device="cpu", **KNOWN)  # type: ignore[arg-type]
CONV = Work(
    op="FusedConv", macs=1e6, weight_bytes=4e4, activation_bytes=8e4, precision="fp32", inner=90, outer=10, taps=9
)


def work(generator: np.random.Generator, op: str, precision: str, macs: bool) -> Work:
    size = generator.uniform(1e4, 1e6, 3)
    return Work(
        op=op, macs=float(size[0]) * 100 if macs else 0.0, weight_bytes=float(size[1]), activation_bytes=float(size[2]),
        precision=precision, inner=9, outer=int(generator.integers(4, 512)), taps=int(generator.integers(1, 3)) ** 2,
        steps=int(generator.integers(1, 30)) if op == "LSTM" else 1,
    )  # type: ignore[arg-type]  # fmt: skip


def samples() -> list[Sample]:
    generator = np.random.default_rng(0)
    computing, others = ("Conv", "DepthwiseConv", "MatMul", "LSTM"), ("Add", "Gelu", "Transpose", "QuantizeLinear")
    made = []
    for index in range(300):
        works = tuple(
            work(generator, str(op), str(generator.choice(["fp32", "int8"])), op in computing)
            for op in generator.choice([*computing, *others], generator.integers(1, 4))
        )
        made.append(Sample(str(index), works, attained.milliseconds(works, MACHINE) / 1e3))
    return made


def test_a_convolution_takes_its_operations_its_bytes_its_windows_and_its_start() -> None:
    assert attained.parts(CONV) == pytest.approx({
        "attained_gops.fp32.conv": 2e-3, "attained_gb_s.weights": 4e-5, "attained_gb_s.fp32.activations": 8e-5,
        "attained_gb_s.fp32.gathered": 4 * 1e6 / 10 / 1e9, "operator_us.fp32.layer": 1,
    })  # fmt: skip
    per = KNOWN["attained_gb_s"]
    seconds = 2e-3 / KNOWN["attained_gops"]["fp32.conv"] + 4e-5 / per["weights"] + 8e-5 / per["fp32.activations"]
    seconds += 4e-4 / per["fp32.gathered"] + (KNOWN["operator_us"]["call"] + KNOWN["operator_us"]["fp32.layer"]) / 1e6
    assert attained.milliseconds([CONV], MACHINE) == pytest.approx(1e3 * seconds)
    assert predicted.latency_ms([CONV], MACHINE) == attained.milliseconds([CONV], MACHINE)


def test_a_recurrent_layer_reads_its_weights_at_each_step() -> None:
    parts = attained.parts(Work(op="LSTM", macs=1e6, weight_bytes=1e4, activation_bytes=1e3, precision="fp32", steps=7))
    assert parts["attained_gb_s.states"] == pytest.approx(7e-5)
    assert parts["operator_us.fp32.step"] == 7


def test_the_rates_are_found_again() -> None:
    found = rates.fit(samples())
    for table, wanted in KNOWN.items():
        assert getattr(found, table) == pytest.approx(wanted, rel=0.02)
    assert found.median_error < 1e-3


def test_a_rate_that_no_graph_shows_is_at_its_bound() -> None:
    found = rates.fit([Sample("one", (CONV,), 1e-3)])
    assert found.attained_gops["int8.matmul"] == 1e5
    assert found.operator_us["int8.step"] == 1e-3


def test_the_tables_are_a_targets() -> None:
    target, found = ({f.name: f.type for f in fields(kind)} for kind in (Target, Attained))
    assert {name.partition(".")[0] for name in NAMES} <= target.keys() & found.keys()
    assert MACHINE.attained
    assert not Target(name="none", runtime="onnxruntime", device="cpu").attained


def test_the_processor_is_measured_and_every_rate_has_a_graph_that_shows_it(store: Store) -> None:
    run = Inline(store)
    found = run.must(Rates(target=CPU, seconds=1e-4))
    assert found.graphs == len(run.lines) > 100
    assert {f"{t}.{key}" for t in KNOWN for key in getattr(found, t)} == set(NAMES)
    for table in KNOWN:
        assert all(rate > 0 for rate in getattr(found, table).values())
    assert found.machine["cpu"]


def test_the_graphs_show_every_part(tmp_path: Path) -> None:
    from petra_deploy.worker.artifact.optimized import optimized
    from petra_deploy.worker.artifact.work import count_nodes
    from petra_deploy.worker.measure.probes import probes

    seen: set[str] = set()
    for index, probe in enumerate(probes()):
        path = tmp_path / f"{index}.onnx"
        path.write_bytes(probe.model.SerializeToString())
        seen |= attained.total(count_nodes(optimized(path), probe.feeds)).keys()
    assert seen == set(NAMES)


def test_only_a_processor_is_measured(store: Store) -> None:
    done = Inline(store)(Rates(target=resolve("t4")))
    assert "rates are measured with ONNX Runtime on a processor, not for t4" in str(done)


def test_some_rates_alone_are_refused() -> None:
    some = Target(name="some", runtime="onnxruntime", device="cpu", attained_gops={"fp32.conv": 3.0})
    with pytest.raises(ValueError, match=r"but not attained_gops\.fp32\.conv1x1, "):
        predicted.latency_ms([CONV], some)
