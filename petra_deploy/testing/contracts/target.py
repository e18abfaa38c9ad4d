"""The contract of a target: nothing is wrong with its TOML, and every claim in it says where it is from."""

import json

from petra_deploy.core import catalogue, files, machine
from petra_deploy.core.target import Target
from petra_deploy.testing.contracts._contract import Contract


class TargetContract(Contract):
    """`names` are those of files in `targets/`, or in the folder of an entry point `petra_deploy.target`."""

    kind = "target"

    def test_nothing_is_wrong_with_its_file(self, target: str) -> None:
        assert catalogue.problems(machine.targets()[target]) == ()

    def test_it_survives_json(self, target: str) -> None:
        found = machine.resolve(target)
        assert files.decode(json.loads(files.dumps(found)), Target, "the target") == found

    def test_it_can_be_told_whether_this_machine_is_it(self, target: str) -> None:
        found = machine.resolve(target)
        reason = machine.absent(found)
        assert reason is None or reason.startswith("needs ")
        assert not found.detect or reason is None
