"""Hold this version against the last release: one model, one kept strategy, an engine of each, compared in turns.

    python benchmarks/self.py                               # about three minutes on two cores
    python benchmarks/self.py --base v0.1.0 --out petra-out/self
    python benchmarks/self.py --prepare                     # the two bundles only: the workflow bench.yml compares them

The release's sources are taken out of git and run with the packages that are installed here, so that what differs is
our code alone. Without a release the base is where this branch left main, or the commit before; it is said which.
Exit code: that of `petra-deploy compare`, 1 where the new engine is slower, larger or worse than the gates allow.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STRATEGY = Path(__file__).with_name("self.json")
GATES = ("--fail-above", "5%", "--fail-size-above", "5%", "--fail-drop-above", "1.0", "--time", "90s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="what to hold against: a tag, a branch or a commit  [default: the last release]")
    parser.add_argument("--out", type=Path, default=Path("petra-out/self"), help="where everything goes")
    parser.add_argument("--prepare", action="store_true", help="make the two bundles, compare nothing")
    parser.add_argument("--target", default="cpu")
    given = parser.parse_args()
    out = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    ref, why = (given.base, "as asked") if given.base else base()
    print(f"base: {ref} ({why}), {git('show', '--no-patch', '--format=%h %s', f'{ref}^{{commit}}')}", flush=True)
    with tempfile.TemporaryDirectory(prefix="petra-self-") as scratch:
        sources = Path(scratch) / "base"
        unpack(ref, sources)
        petra(ROOT, "petra_deploy.demo.train", str(out / "input"))
        for name, code in (("base", sources), ("new", ROOT)):
            print(f"{name}: {STRATEGY.name} applied by {code}", flush=True)
            apply(code, out, name, given.target)
    if given.prepare:
        return 0
    ours = ("--target", given.target, "--save", str(out / "comparison.json"), "--markdown", str(out / "report.md"))
    rows = ("--data", str(out / "input" / "data.npz"))
    bundles = (str(out / "base" / "bundle"), str(out / "new" / "bundle"))
    return petra(ROOT, "petra_deploy", "compare", *bundles, *GATES, *rows, *ours, check=False)


def base() -> tuple[str, str]:
    """The last release before this commit, else where this branch left main, else the commit before; and which."""
    tagged = git("tag", "--points-at", "HEAD", "v[0-9]*")
    tip = "HEAD^" if tagged else "HEAD"
    if release := git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", tip, check=False):
        return release, "the last release"
    head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    for main_branch in ("origin/main", "main"):
        fork = git("merge-base", "HEAD", main_branch, check=False)
        if fork and (fork != head or changed):
            return fork, f"there is no release yet; where this left {main_branch}"
    return git("rev-parse", "HEAD^"), "there is no release yet, and this is main; the commit before"


def unpack(ref: str, folder: Path) -> None:
    """The tree of `ref`, without history."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", ref], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder), "-f", "-"], input=archive, check=True)


def apply(code: Path, out: Path, name: str, target: str) -> None:
    brought = out / "input"
    model = (str(brought / "model.pt"), "--model", f"{brought / 'model.py'}:build", "--data", str(brought / "data.npz"))
    petra(code, "petra_deploy", "apply", str(STRATEGY), *model, "--target", target, "--out", str(out / name))


def petra(code: Path, module: str, *arguments: str, check: bool = True) -> int:
    """Run a module of the petra-deploy whose sources are in `code`, from a folder that holds none."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(command, env=environment, check=check).returncode


def git(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=check, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
