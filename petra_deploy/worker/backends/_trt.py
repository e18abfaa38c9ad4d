"""What `tensorrt` and `tensorrt_rtx` share: an engine is a plan, with the graph that it was built from beside it.

    model.onnx      the graph, for whoever cannot open the plan
    model.plan      the engine: native code of one device and one version
    plan.json       where it was built and for what (_trt_cache.Provenance)
    timing.cache    what the builder measured, so that the next build is quick and the same

`open` takes a folder with or without a plan. A plan that this user did not build here, or that is of another
device or version, is never loaded: it is built once more from model.onnx, into the user's cache, and a log
line says so. Source: TensorRT's documentation; TRUST of engines is in docs/targets.md.
"""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from petra_deploy.core import files, machine
from petra_deploy.core.errors import Problem
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.store import default_root, digest_file
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Signature
from petra_deploy.worker.artifact.zeros import two_of_four
from petra_deploy.worker.backends import _trt_cache as cache
from petra_deploy.worker.backends import _trt_lottery as lottery
from petra_deploy.worker.backends._trt_build import Built, Settings, compile, merged
from petra_deploy.worker.backends._trt_cache import MODEL, TIMING, Provenance
from petra_deploy.worker.backends._trt_runner import Runner
from petra_deploy.worker.backends._trt_vendor import Vendor, admits
from petra_deploy.worker.measure.lock import exclusive

_LOG = logging.getLogger("petra_deploy")
Feeds = dict[str, NDArray[Any]]
_ON_OPENING = ("cuda_graph", "threads")  # settings that a plan does not depend on


def obstacles(target: Target) -> tuple[str, ...]:
    return () if target.device == "cuda" else ("this backend runs on NVIDIA GPUs only",)


def build(
    vendor: Vendor, graph: Graph, model: Path, target: Target, settings: Mapping[str, object], folder: Path
) -> Engine:
    """Fill `folder`; the engine's key is empty. Where the device is here, the plan is run as well.

    Raises Problem "unsupported" where the graph is refused, "absent" where no device is here to build on,
    "mismatch" where its doors are not the signature's or no build computes what it should, "extra" without
    the package or with a release that the target does not work with.
    """
    wanted = files.decode(dict(settings), Settings, "the runtime settings")
    vendor.load()
    if wanted.sparse is None:
        wanted = replace(wanted, sparse="2:4" in target.sparsity and two_of_four(model))
    index = _index(vendor, target, wanted)
    shutil.copyfile(model, folder / MODEL)
    capability = _capability(index, target)
    builds = [_compile(vendor, folder / MODEL, wanted, capability, index) for _ in range(wanted.builds)]
    built = builds[0]
    _check_doors(built, graph.signature)
    facts: dict[str, object] = {
        "operators": _operators(folder / MODEL), "layers": built.layers, "sizes": built.ranges
    }  # fmt: skip
    if index is not None:
        plans = [_plan(vendor, one, folder / MODEL, capability, index) for one in builds]
        wanted = _try(vendor, plans[0], wanted, index, [_feeds(graph.signature, built, which) for which in (0, 1)])
        if len(plans) > 1:
            feeds = _feeds(graph.signature, built, 1)
            won, facts["builds"] = _play(vendor, plans, wanted, index, folder / MODEL, feeds)
            built, facts["choice"] = builds[won.index], won.why
    _save(vendor, built, folder, capability, index)
    return Engine(
        key="", graph=graph.key, backend=vendor.name, signature=graph.signature, settings=files.plain(wanted),
        versions=describe(vendor), bytes=len(built.plan), facts=facts,
    )  # fmt: skip


def open(vendor: Vendor, folder: Path, settings: Mapping[str, object], *, seed: int = 0) -> Runner:
    """Open the plan in `folder`, or build it first. Raises Problem where no driver is here."""
    wanted = files.decode(dict(settings), Settings, "the runtime settings")
    devices = vendor.devices()
    version = describe(vendor).get(vendor.name, "")
    plan = cache.vouched(folder)
    fitting = [i for i, device in enumerate(devices) if plan and _fits(plan, version, device, wanted)]
    index = fitting[0] if fitting else 0
    if plan is None or not fitting:
        plan = _built_here(vendor, folder, wanted, index, version)
    return _runner(vendor, plan, wanted, index, seed)


def describe(vendor: Vendor) -> dict[str, str]:
    """The package's version; nothing where it is not here."""
    try:
        return {vendor.name: str(vendor.load()[0].__version__)}
    except Problem:
        return {}


def _index(vendor: Vendor, target: Target, wanted: Settings) -> int | None:
    """The number of the device to build on; None: ahead of time. Raises Problem where that cannot be."""
    if wanted.sparse and "2:4" not in target.sparsity:
        raise Problem("unsupported", f"{target.name} does not skip 2:4 zeros", "leave out the setting sparse")
    ranges, version = target.runtime_versions.get(vendor.name, ()), describe(vendor).get(vendor.name, "")
    if not admits(ranges, version):
        raise Problem("extra", f"{vendor.title} {version} is here, and {target.name} needs {' or '.join(ranges)}")
    index = vendor.index(target)
    if index is not None:
        return index
    if not vendor.ahead:
        vendor.devices()
        raise Problem(
            "absent",
            f"{vendor.title} builds on the device that it builds for: {target.name} {machine.absent(target)}",
            "build it on the target",
        )
    if target.compute_capability is None:
        raise Problem("unsupported", f"{target.name} is not here, and its file names no compute capability")
    if wanted.builds > 1:
        raise Problem("absent", f"several builds are compared on the device, and {target.name} is not here",
                      "leave out the setting builds")  # fmt: skip
    return None


def _compile(vendor: Vendor, model: Path, wanted: Settings, capability: str, index: int | None) -> Built:
    """With what is known of timings on this device; without, where builds are to differ."""
    known = b"" if index is None or wanted.builds > 1 else cache.read(_timings(vendor, index))
    return compile(vendor, model, wanted, capability=capability, timing=known)


def _built_here(vendor: Vendor, folder: Path, wanted: Settings, index: int, version: str) -> cache.Plan:
    """The plan of `folder`'s graph for this device, from the user's cache; built now if it is not there."""
    model = folder / MODEL
    if not model.is_file():
        raise Problem("input", f"{folder} has neither a plan that was built here nor a {MODEL} to build one from")
    device = machine.cuda_devices()[index]
    lasting = {name: value for name, value in files.plain(wanted).items() if name not in _ON_OPENING}
    names = (device.name, device.compute_capability)
    final = cache.plan_folder(vendor.name, version, *names, digest_file(model), lasting)
    with cache.locked(final):
        found = cache.vouched(final)
        if found is not None and _fits(found, version, device, wanted):
            return found
        _LOG.warning("%s: no plan for %s was built here, so it is built now and kept in the cache", folder, device.name)
        with files.new_folder(final) as draft:
            shutil.copyfile(model, draft / MODEL)
            capability = device.compute_capability
            built = _compile(vendor, draft / MODEL, replace(wanted, builds=1), capability, index)
            return _save(vendor, built, draft, capability, index)


def _fits(plan: cache.Plan, version: str, device: machine.CudaDevice, wanted: Settings) -> bool:
    return plan.provenance.fits(version, device.name, device.compute_capability, wanted.hardware,
                                newer=wanted.version_compatible)  # fmt: skip


def _try(vendor: Vendor, plan: cache.Plan, wanted: Settings, index: int, examples: list[Feeds]) -> Settings:
    """Run each twice, since what does not run is no engine; returns the settings with `cuda_graph` settled."""
    with _runner(vendor, plan, wanted, index, 0) as runner:
        for feeds in [*examples, *examples]:
            runner.run(feeds)
        if wanted.cuda_graph != "auto":
            return wanted
        return replace(wanted, cuda_graph="on" if runner.captures or vendor.graphs else "off")


def _play(vendor: Vendor, plans: list[cache.Plan], wanted: Settings, index: int, model: Path,
          feeds: Feeds) -> tuple[lottery.Won, list[dict[str, object]]]:  # fmt: skip
    """The builds against one another, alone on the device."""
    processor = lottery.by_processor(model, feeds)
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive(default_root(), "cuda", _LOG.info))
        runners = [stack.enter_context(_runner(vendor, plan, wanted, index, 0)) for plan in plans]
        won, told = lottery.play(runners, feeds, processor)
    _LOG.info("%d builds: %s", len(plans), won.why)
    return won, told


def _feeds(signature: Signature, built: Built, which: int) -> Feeds:
    """Example inputs at the least (0), the best (1) or the most (2) of each dynamic dimension."""
    sizes = {name: found[which] for name, found in built.ranges.items()}
    return {spec.name: lottery.example(spec, sizes) for spec in signature.inputs if spec.name in built.inputs}


def _runner(vendor: Vendor, plan: cache.Plan, wanted: Settings, index: int, seed: int) -> Runner:
    jit = cache.jit_file(plan.provenance.version, machine.cuda_devices()[index].name, plan.provenance.plan)
    return Runner(
        vendor, plan, cuda_graph=wanted.cuda_graph, host_code=wanted.version_compatible, index=index,
        jit=jit, seed=seed,
    )  # fmt: skip


def _plan(vendor: Vendor, built: Built, model: Path, capability: str, index: int | None) -> cache.Plan:
    device = "" if index is None or vendor.ahead else machine.cuda_devices()[index].name
    return cache.Plan(
        built.plan,
        Provenance(
            backend=vendor.name, version=describe(vendor).get(vendor.name, ""), device=device,
            compute_capability=capability, driver=_driver(), model=digest_file(model),
            plan=hashlib.sha256(built.plan).hexdigest(), inputs=built.inputs, outputs=built.outputs,
        ),
    )  # fmt: skip


def _save(vendor: Vendor, built: Built, folder: Path, capability: str, index: int | None) -> cache.Plan:
    """Put the plan, and where there is one its timing cache, into `folder`; the cache learns of both."""
    if built.timing and index is not None:
        (folder / TIMING).write_bytes(built.timing)
        cache.update(_timings(vendor, index), lambda known: merged(vendor, known, built.timing))
    plan = _plan(vendor, built, folder / MODEL, capability, index)
    cache.vouch(folder, plan)
    return plan


def _timings(vendor: Vendor, index: int) -> Path:
    version = describe(vendor).get(vendor.name, "")
    return cache.timing_file(f"{vendor.name}-{version}", machine.cuda_devices()[index].name, _driver())


def _capability(index: int | None, target: Target) -> str:
    """Of the device that the plan is for."""
    return (target.compute_capability or "") if index is None else machine.cuda_devices()[index].compute_capability


def _driver() -> str:
    """The driver's version, like "580.65.06"; empty where the system does not say (Jetson)."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _check_doors(built: Built, signature: Signature) -> None:
    inputs, outputs = ({spec.name for spec in specs} for specs in (signature.inputs, signature.outputs))
    if not set(built.inputs) <= inputs or built.outputs != tuple(spec.name for spec in signature.outputs):
        raise Problem(
            "mismatch",
            f"the graph takes {', '.join(built.inputs)} and gives {', '.join(built.outputs)}, "
            f"its signature {', '.join(sorted(inputs))} and {', '.join(sorted(outputs))}",
        )


def _operators(model: Path) -> dict[str, int]:
    """How often each operator occurs in the graph. What TensorRT fuses them into has no names of its own."""
    import collections

    import onnx  # here, so that a process which only serves does not carry it

    graph: Any = onnx.load(str(model), load_external_data=False).graph
    return dict(sorted(collections.Counter(node.op_type for node in graph.node).items()))
