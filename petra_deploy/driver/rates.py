"""A target's file for this machine's processor, its rates measured here.

    target, attained = measured(resolve("cpu"))
    save(Path("mine.toml"), target)             # then: petra-deploy optimize --target ./mine.toml

On another machine such a target is predicted from those rates.
"""

import datetime
import tempfile
from dataclasses import replace
from pathlib import Path

from petra_deploy.core import files, machine, registry
from petra_deploy.core.errors import BadInput, from_failure
from petra_deploy.core.job import Limits, Rates
from petra_deploy.core.outcome import Attained, Failed
from petra_deploy.core.store import Store, default_root
from petra_deploy.core.target import Target
from petra_deploy.driver.dispatch import Dispatch

COMMAND = "petra-deploy targets detect --measure"
_TABLES = ("attained_gops", "attained_gb_s", "operator_us")


def measured(target: Target) -> tuple[Target, Attained]:
    """`target`, which this machine is, with the rates that it attains, and how they were found.

    Takes about half a minute, in a process of its own. Raises a PetraError where that fails.
    """
    store = Store(default_root())
    executor = registry.find("executor", "local")
    with tempfile.TemporaryDirectory(prefix="petra-rates-") as logs:
        opened = executor.open(executor.Options(store=store.root, logs=Path(logs)))
        try:
            done = Dispatch(store, opened)(Rates(target=target, limits=Limits(seconds=300.0)))
        finally:
            opened.close()
    if isinstance(done, Failed):
        raise from_failure(replace(done, log=""))
    return described(target, done.value), done.value


def described(target: Target, attained: Attained) -> Target:
    """`target` with these rates and their source, as a processor that need not be detected again."""
    model, runtime = machine.cpu_model(), machine.versions(["onnxruntime"]).get("onnxruntime", "")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    source = f"measured on {today} on {model} with onnxruntime {runtime} by {COMMAND}"
    sources = {**target.sources, **dict.fromkeys(_TABLES, source)}
    if target.memory_gb is not None:
        sources.setdefault("memory_gb", f"read from the machine on {today}")
    return replace(
        target, summary=f"{model}, one that was measured", detect=False, sources=sources,
        attained_gops=attained.attained_gops, attained_gb_s=attained.attained_gb_s, operator_us=attained.operator_us,
    )  # fmt: skip


def writable(path: Path) -> Path:
    """`path`, if a target's file may be written there; asked before half a minute is spent. Raises BadInput."""
    path = path.expanduser()
    if path.suffix != ".toml":
        raise BadInput(f"{path} is not the name of a target's file", "name it like ./mine.toml")
    if not path.parent.is_dir():
        raise BadInput(f"the folder {path.parent} does not exist", "make it first")
    return path


def save(path: Path, target: Target) -> None:
    """Write the target's file; its name becomes the file's. Raises BadInput where that cannot be."""
    try:
        files.write_toml(writable(path), replace(target, name=path.stem))
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None
