"""One ssh connection with the thin runner at its other end.

    connection = Connection(Remote(host="me@box"), runtime="onnxruntime")
    reply = connection.ask({"do": "look", "target": ...}, seconds=60)
    connection.close()

`ssh` is the user's own, with their ~/.ssh/config, keys and known hosts; `PETRA_SSH` replaces the command
("ssh -F file"). It never asks for a password (BatchMode), and ends itself when the line is dead for 20 s.
What crosses it first is `_bootstrap`, then, once a version, the code of `core`, `worker` and this folder.
"""

import base64
import contextlib
import errno
import functools
import gzip
import hashlib
import io
import json
import os
import shlex
import struct
import subprocess
import tarfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from petra_deploy.core.errors import BadInput, MissingExtra, PetraError, TargetAbsent
from petra_deploy.core.request import Remote
from petra_deploy.core.store import Store
from petra_deploy.driver.executors._wire import PATIENCE, PING, Channel, Late, Lost, receive_folder, send_folder

NEEDS = {"numpy": "numpy", "pydantic": "pydantic", "annotated_types": "annotated-types", "psutil": "psutil"}
RUNTIMES = {  # runtime -> modules to import, and the packages that bring them
    "onnxruntime": {"onnxruntime": "onnxruntime", "onnx": "onnx"},
    "openvino": {"openvino": "openvino"},
    "tensorrt": {"tensorrt": "tensorrt"},
    "tensorrt_rtx": {"tensorrt_rtx": "tensorrt-rtx"},
}
_OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=4", "RemoteCommand=none",
    "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no",
)  # fmt: skip
_PACKAGE = Path(__file__).resolve().parents[2]
_ROOMS = ("__init__.py", "core/**/*.py", "worker/**/*.py", "driver/__init__.py", "driver/executors/*.py")
_START = "import sys,zlib,base64;exec(zlib.decompress(base64.b64decode(sys.argv[1])))"
_SLOWEST = 10e6  # bytes a second that a disk there writes and reads again
_WORDS = 4096  # bytes kept of what ssh, or the far end, last said


class Connection:
    """Raises TargetAbsent (exit 3) where the machine cannot be reached, MissingExtra (4) for what it lacks."""

    def __init__(self, remote: Remote, runtime: str) -> None:
        self.remote = remote
        self._words = bytearray()
        self._packages = NEEDS | RUNTIMES.get(runtime, {})
        code, digest = _code()
        mark = f"petra-runner {digest[:16]} "
        wants = list(RUNTIMES.get(runtime, {}))
        command = _command(remote, {"digest": digest, "mark": mark, "needs": list(NEEDS), "wants": wants})
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the driver, which then closes the connection
            )
        except OSError as error:
            raise MissingExtra(f"ssh cannot be started: {error.strerror}", "install OpenSSH's client") from None
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("ssh was started without pipes")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._closed = threading.Event()
        self.channel = Channel(self.process.stdout.fileno(), self.process.stdin.fileno())
        try:
            hello = json.loads(self.channel.line(mark.encode(), time.monotonic() + PATIENCE))
            self._check(hello)
            if not hello["there"]:
                self.channel.write(struct.pack("<Q", len(code)) + code)
        except (Lost, Late, ValueError) as error:
            if isinstance(error, Lost):  # ssh is about to end, with an exit code that says why
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
            self.close()
            raise self._refused(error) from None
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._ping, daemon=True).start()

    def ask(self, message: dict[str, Any], seconds: float) -> Any:
        """The reply. Raises Lost, Late after `seconds`, OSError (ENOSPC) where a disk there is full."""
        self.channel.send(message)
        return self._reply(seconds)

    def put(self, store: Store, key: str) -> None:
        """Send a store entry."""
        send_folder(self.channel, {"do": "put"}, store.path(key))
        size = sum(path.stat().st_size for path in store.path(key).rglob("*") if path.is_file())
        if self._reply(PATIENCE + size / _SLOWEST)["key"] != key:
            raise Lost(f"the entry {key[:12]} arrived damaged")

    def get(self, store: Store, key: str) -> None:
        """Fetch a store entry; it is kept under the key that its bytes have, which must be `key`."""
        self.channel.send({"do": "get", "key": key})
        files = self._reply(PATIENCE)["files"]
        if store.add(lambda folder: receive_folder(self.channel, files, folder)) != key:
            raise Lost(f"the entry {key[:12]} arrived damaged")

    def close(self) -> None:
        """End it; the far end sees its input end, kills what runs there and goes. Twice is harmless."""
        self._closed.set()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.channel.close()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _reply(self, seconds: float) -> Any:
        reply = self.channel.receive(time.monotonic() + seconds)
        if reply.get("trouble") == "disk":
            raise OSError(errno.ENOSPC, reply["reason"])
        if "trouble" in reply:
            raise Lost(reply["reason"])
        return reply

    def lacking(self, modules: list[str]) -> MissingExtra:
        """The error that names what the Python there lacks, and the one command that installs it."""
        python, host = self.remote.python, self.remote.name
        lacks = [self._packages[name] for name in modules]
        port = f"-p {self.remote.port} " if self.remote.port else ""
        return MissingExtra(
            f"{python} on {host} lacks {', '.join(lacks)}",
            f'install what it lacks: ssh {port}{self.remote.host} "{python} -m pip install {" ".join(lacks)}", or '
            "name another Python with --remote-python PATH",
        )

    def _check(self, hello: dict[str, Any]) -> None:
        python, host = self.remote.python, self.remote.name
        version = ".".join(map(str, hello["python"]))
        if hello["python"] < [3, 11]:
            raise MissingExtra(
                f"{python} on {host} is Python {version}, and the runner needs 3.11 or later",
                "name another with --remote-python PATH",
            )
        if hello["missing"]:
            raise self.lacking([*hello["missing"], *hello["wanting"]])
        self.wanting: list[str] = hello["wanting"]  # modules of the target's runtime that are not there
        if hello["trouble"]:
            raise BadInput(f"{host}: {hello['trouble']}", "set PETRA_CACHE_DIR there to a writable folder")

    def _refused(self, error: Exception) -> PetraError:
        """Why there is no greeting: ssh's own sentence (its exit code is 255), or that of the shell there."""
        said = self.last_words() or str(error)
        code, host, python = self.process.returncode, self.remote.name, self.remote.python
        if code in (126, 127):
            return MissingExtra(f"{host} has no Python called {python}: {said}", "name it with --remote-python PATH")
        port = f"-p {self.remote.port} " if self.remote.port else ""
        return TargetAbsent(
            f"{host} cannot be reached: {said}",
            f"`ssh -o BatchMode=yes {port}{self.remote.host} true` must work without a question: log in by hand once "
            "for the host key, and use a key (ssh-copy-id, ssh-agent), not a password",
        )

    def last_words(self) -> str:
        """What ssh, or the far end, said last on its error stream. May hold the machine's name."""
        self._listener.join(1.0)
        lines = [line.strip() for line in self._words.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    def _listen(self) -> None:
        """Keep the last of what comes on the error stream, and read on so that nothing blocks."""
        if self.process.stderr is not None:
            with self.process.stderr as pipe, contextlib.suppress(OSError, ValueError):
                while data := os.read(pipe.fileno(), 1 << 16):
                    self._words[:] = (self._words + data)[-_WORDS:]

    def _ping(self) -> None:
        with contextlib.suppress(Lost, OSError, ValueError):
            while not self._closed.wait(PING):
                self.channel.send({"do": "ping"})


def _command(remote: Remote, asked: dict[str, Any]) -> list[str]:
    """ssh, and one command line that every shell reads alike: no quotes but around the path."""
    start = (_PACKAGE / "driver" / "executors" / "_bootstrap.py").read_bytes()
    words = [base64.b64encode(data).decode() for data in (zlib.compress(start, 9), json.dumps(asked).encode())]
    python = remote.python
    home = "~/" if python.startswith("~/") else ""  # for the shell there to fill in
    line = f"exec {home}{shlex.quote(python.removeprefix(home))} -c {shlex.quote(_START)} {' '.join(words)}"
    options = [part for option in _OPTIONS for part in ("-o", option)]
    port = ["-p", str(remote.port)] if remote.port else []
    try:
        ssh = shlex.split(os.environ.get("PETRA_SSH") or "ssh")
    except ValueError as error:
        raise BadInput(f"PETRA_SSH is no command: {str(error).lower()}", 'write it like "ssh -F file"') from None
    return [*ssh, "-T", *options, *port, "--", remote.host.replace("[", "").replace("]", ""), line]


@functools.cache
def _code() -> tuple[bytes, str]:
    """The sources of the runner as a .tar.gz that is the same for the same sources, and its sha256."""
    archive = io.BytesIO()
    with gzip.GzipFile(fileobj=archive, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for path in sorted({path for room in _ROOMS for path in _PACKAGE.glob(room)}):
            entry = tarfile.TarInfo(path.relative_to(_PACKAGE.parent).as_posix())
            data = path.read_bytes()
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue(), hashlib.sha256(archive.getvalue()).hexdigest()
