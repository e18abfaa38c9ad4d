"""What a jailed child can and cannot do, tried in real child processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from petra_deploy.worker import jail

needs_landlock = pytest.mark.skipif(not jail.available(), reason="this kernel has no Landlock with network control")

_PROLOGUE = """
import os, sys, socket, subprocess
from pathlib import Path
from petra_deploy.worker.jail import jail, python_paths
open_folder, secret, out = map(Path, sys.argv[1:4])
assert jail([*python_paths(), open_folder], [out], None) is True
"""


def attempt(folder: Path, body: str) -> str:
    """Run `body` in a jailed child; gives "done" or the name of the exception."""
    for name in ("open", "secret", "out"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "file").write_text("text")
    code = (
        f"{_PROLOGUE}\ntry:\n    {body}\n    print('done')\nexcept BaseException as e:\n    print(type(e).__name__)\n"
    )
    arguments = [str(folder / name) for name in ("open", "secret", "out")]
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={"TMPDIR": str(folder / "out")}
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip().splitlines()[-1]


@needs_landlock
@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("(open_folder / 'file').read_text()", "done"),
        ("(secret / 'file').read_text()", "PermissionError"),
        ("os.listdir(secret)", "PermissionError"),
        ("(open_folder / 'new').write_text('x')", "PermissionError"),
        ("(open_folder / 'file').write_text('x')", "PermissionError"),
        ("os.unlink(open_folder / 'file')", "PermissionError"),
        ("(out / 'new').write_text('x'); os.rename(out / 'new', out / 'newer')", "done"),
        ("os.rename(out / 'file', open_folder / 'moved')", "PermissionError"),
        ("os.link(out / 'file', open_folder / 'linked')", "PermissionError"),
        ("(out / 'way').symlink_to(secret / 'file'); (out / 'way').read_text()", "PermissionError"),
        ("subprocess.run(['/bin/true'], check=True)", "PermissionError"),
        ("socket.create_connection(('127.0.0.1', 9), 2)", "PermissionError"),
        ("socket.create_server(('127.0.0.1', 0))", "PermissionError"),
        ("open('/dev/null', 'w').write('x')", "done"),
        ("import tempfile; tempfile.TemporaryFile().write(b'x')", "done"),
        ("import multiprocessing; multiprocessing.Lock()", "done"),
    ],
)
def test_a_jailed_child_can_do_this_and_no_more(tmp_path, body, outcome):
    assert attempt(tmp_path, body) == outcome


@needs_landlock
def test_a_jailed_child_cannot_signal_its_parent(tmp_path):
    assert attempt(tmp_path, "os.kill(os.getppid(), 0)") in ("PermissionError", "done")
    abi_with_signals = attempt(tmp_path, "import ctypes; assert ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6")
    if abi_with_signals == "done":
        assert attempt(tmp_path, "os.kill(os.getppid(), 0)") == "PermissionError"


@needs_landlock
def test_torch_and_onnxruntime_work_inside(tmp_path):
    body = """
    import io, torch, onnxruntime
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 3)).eval()
    inputs = (torch.randn(2, 1, 8, 8),)
    torch.onnx.export(model, inputs, str(out / 'm.onnx'), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(out / 'm.onnx'))
    session.run(None, {session.get_inputs()[0].name: inputs[0].numpy()})
    """
    assert attempt(tmp_path, body.strip()) == "done"


def test_the_memory_limit_holds_without_a_jail():
    code = "from petra_deploy.worker.jail import _limit; _limit(1 << 30, addresses=True); bytearray(2 << 30)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MemoryError" in finished.stderr


@needs_landlock
def test_other_threads_are_noticed_before_it_is_too_late():
    code = (
        "import threading, time; threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
        "from petra_deploy.worker.jail import jail; jail([], [])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "before other threads" in finished.stderr
