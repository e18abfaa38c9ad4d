"""`petra-deploy verify`: is a bundle what it was when it was written, and does it open?"""

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import dump


@click.command()
@click.argument("bundle", type=options.PATH, metavar="BUNDLE")
@options.as_json
@options.debug
def command(bundle: str, as_json: bool) -> None:
    """Check every file of BUNDLE against its manifest, and open its engine.

    Exit code 1 when something is missing or has changed. This proves integrity, not origin.

    \b
    petra-deploy verify petra-out/model/bundle
    """
    from petra_deploy.runtime import load_bundle

    with load_bundle(bundle) as opened:
        manifest = opened.manifest
    if as_json:
        dump(manifest)
    else:
        click.echo(f"{bundle}: {len(manifest.files)} files as they were written, and the engine opens")
