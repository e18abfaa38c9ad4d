"""The contract of a target: the TOML is valid, and every figure in it says where it is from."""

import tomllib

from petra_deploy.core import files, machine, registry
from petra_deploy.core.target import Target
from petra_deploy.testing.contracts._contract import Contract


class TargetContract(Contract):
    """`names` are those of files in `targets/`, or in the folder of an entry point `petra_deploy.target`."""

    kind = "target"

    def test_the_file_is_valid_and_named_as_the_target(self, target: str) -> None:
        assert files.read_toml(machine.targets()[target], Target).name == target

    def test_it_says_in_a_sentence_what_it_is(self, target: str) -> None:
        assert files.read_toml(machine.targets()[target], Target).summary.strip()

    def test_its_runtime_is_a_registered_backend(self, target: str) -> None:
        assert files.read_toml(machine.targets()[target], Target).runtime in registry.names("backend")

    def test_every_figure_has_a_source_and_every_source_a_figure(self, target: str) -> None:
        written = tomllib.loads(machine.targets()[target].read_text(encoding="utf-8"))
        sources = written.pop("sources", {})
        assert set(sources) == figures(written)
        assert all(text.strip() for text in sources.values())

    def test_it_can_be_told_whether_this_machine_is_it(self, target: str) -> None:
        found = machine.resolve(target)
        reason = machine.absent(found)
        assert reason is None or target in reason
        assert not found.detect or reason is None


def figures(written: dict[str, object]) -> set[str]:
    """The names of all numbers in a target's TOML: "memory_gb", "peaks_tflops.int8"."""
    names: set[str] = set()
    for name, value in written.items():
        if isinstance(value, dict):
            names |= {f"{name}.{key}" for key in value}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            names.add(name)
    return names
