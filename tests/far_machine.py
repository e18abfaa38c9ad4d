"""A second machine on this one: an environment with the runner's packages alone, and an SSH server in front.

    with far_machine(folder) as far:
        Remote(host="far", python=str(far.python))          # with PETRA_SSH set to far.ssh

The environment is what `pip install` of those packages would make, its files linked from this one's. The
server is asyncssh on 127.0.0.1 with keys of its own; the client is the system's `ssh`.
"""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("numpy", "onnxruntime", "onnx", "pydantic", "annotated-types", "psutil")
_TESTS = re.compile(r"onnx/backend/test/|numpy/.*/tests/")  # thousands of files that nothing imports


@dataclass(frozen=True)
class FarMachine:
    folder: Path
    server: int  # process id
    python: Path
    bare: Path  # a Python without packages

    @property
    def ssh(self) -> str:
        """The ssh command that knows the machine as `far`, and as `stranger` with a key that it refuses."""
        return f"ssh -F {self.folder / 'config'}"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def processes(self) -> list[psutil.Process]:
        """What runs there: everything that the server has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.server).children(recursive=True)
        return []

    def workers(self) -> list[psutil.Process]:
        """The children that do jobs."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "petra_deploy.worker.main" in process.cmdline():
                    found.append(process)
        return found


@contextlib.contextmanager
def far_machine(folder: Path) -> Iterator[FarMachine]:
    python, bare = environment(folder / "thin", PACKAGES), environment(folder / "bare", ())
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    server = subprocess.Popen([sys.executable, __file__, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        known = f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}"
        (folder / "known").write_text(known)
        common = f"  HostName 127.0.0.1\n  Port {port}\n  User me\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        common += f"  UserKnownHostsFile {folder / 'known'}\n  GlobalKnownHostsFile none\n"
        keys = {"far": "user", "stranger": "other"}
        lines = (f"Host {host}\n{common}  IdentityFile {folder / key}\n" for host, key in keys.items())
        (folder / "config").write_text("".join(lines))
        yield FarMachine(folder, server.pid, python, bare)
    finally:
        server.terminate()
        server.wait(10)


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """A virtual environment with `packages` and what they need; its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    for name in _with_needs(packages):
        for file in metadata.files(name) or ():
            if file.parts[0] == ".." or "__pycache__" in file.parts or _TESTS.match(str(file)):
                continue
            there = site / file
            there.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.locate(), there)
            except OSError:  # another file system
                shutil.copy2(str(file.locate()), there)
    return python


def _with_needs(packages: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for need in metadata.requires(name) or ():
            if "extra ==" not in need:
                waiting.append(re.split(r"[\s<>=!~;\[(]", need, maxsplit=1)[0])
    return found


async def _serve(folder: Path) -> None:
    import asyncssh

    environment = {**os.environ, "PETRA_CACHE_DIR": str(folder / "cache")}
    for name in ("PYTHONPATH", "PETRA_SSH", "VIRTUAL_ENV"):
        environment.pop(name, None)

    async def session(process: "asyncssh.SSHServerProcess[bytes]") -> None:
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", process.command or "true", env=environment, cwd="/",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        process.stdout.write(b"Welcome to the far machine\n")  # as login scripts do
        assert shell.stdin is not None
        assert shell.stdout is not None
        assert shell.stderr is not None
        typing = asyncio.create_task(_pump(process.stdin, shell.stdin))
        await asyncio.gather(_pump(shell.stdout, process.stdout), _pump(shell.stderr, process.stderr))
        process.exit(await shell.wait())
        typing.cancel()

    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[str(folder / "host")], authorized_client_keys=str(folder / "user.pub"),
        process_factory=session, encoding=None,
    )  # fmt: skip
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - the port, for who started this
    await server.wait_closed()


async def _pump(source: Any, sink: Any) -> None:
    """Copy until the source or the sink ends; then the sink is told so."""
    with contextlib.suppress(Exception):  # whichever way a connection ends
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(Exception):
        if isinstance(sink, asyncio.StreamWriter):
            sink.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
