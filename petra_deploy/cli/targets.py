"""`petra-deploy targets`: what is known of the hardware that a model may run on."""

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import dump


@click.group()
def command() -> None:
    """List, show and check targets, and say which of them this machine is.

    \b
    petra-deploy targets list
    petra-deploy targets show t4
    """


@command.command("list")
@options.as_json
@options.debug
def list_(as_json: bool) -> None:
    """Every known target, and whether this machine is it.

    \b
    petra-deploy targets list
    """
    from petra_deploy.core import catalogue
    from petra_deploy.driver.report import targets

    entries = catalogue.entries()
    if as_json:
        dump({"targets": [{"name": e.name, "target": e.target, "here": e.here, "why_not": e.absent} for e in entries]})
    else:
        click.echo(targets.table(entries))


@command.command()
@click.argument("name", metavar="NAME|FILE.toml")
@options.as_json
@options.debug
def show(name: str, as_json: bool) -> None:
    """What is known of one target, with sources.

    \b
    petra-deploy targets show t4
    """
    from petra_deploy.core import machine
    from petra_deploy.driver.report import targets

    target = machine.resolve(name)
    if as_json:
        dump(target)
    else:
        click.echo(targets.page(target, machine.absent(target) or machine.unserved(target)))


@command.command()
@click.option("--measure", is_flag=True, help="Measure what the processor attains: half a minute.")
@click.option("--save", metavar="FILE.toml", help="Write a target's file with what was measured; implies --measure.")
@options.as_json
@options.debug
def detect(measure: bool, save: str | None, as_json: bool) -> None:
    """What this machine is, and which targets it satisfies.

    \b
    petra-deploy targets detect
    petra-deploy targets detect --measure --save ./mine.toml
    """
    from pathlib import Path

    from petra_deploy.core import catalogue
    from petra_deploy.driver.report import targets

    found = catalogue.detect()
    attained = None
    if measure or save:
        from petra_deploy.core.machine import resolve
        from petra_deploy.driver import rates

        path = rates.writable(Path(save)) if save else None
        target, attained = rates.measured(resolve("cpu"))
        if path:
            rates.save(path, target)
    if as_json:
        from petra_deploy.core.files import plain

        dump(found if attained is None else {**plain(found), "attained": attained})
    else:
        click.echo(targets.detected(found) + (f"\n\n{targets.rates(attained)}" if attained else ""))


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME|FILE.toml]...")
@options.as_json
@options.debug
def validate(names: tuple[str, ...], as_json: bool) -> None:
    """Check the files of targets.

    Types, a source for each figure, and what belongs together; all known targets, if none is named.
    Exit code 2 when something is wrong.

    \b
    petra-deploy targets validate
    petra-deploy targets validate ./my.toml
    """
    from petra_deploy.core import catalogue, machine
    from petra_deploy.core.errors import BadInput
    from petra_deploy.driver.report import targets

    problems = {name: catalogue.problems(machine.path_of(name)) for name in names or machine.targets()}
    if as_json:
        dump({"targets": [{"name": name, "problems": found} for name, found in problems.items()]})
    else:
        click.echo(targets.checked(problems))
    if bad := [name for name, found in problems.items() if found]:
        raise BadInput(
            f"something is wrong in the file of {', '.join(bad)}", "docs/targets.md says what each field means"
        )
