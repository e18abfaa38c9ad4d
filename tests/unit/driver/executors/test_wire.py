"""The line between driver and runner: whole messages, files within their folder, and no waiting without end."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from petra_deploy.driver.executors._wire import Channel, Late, Lost, receive_folder, send_folder


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    there, here = os.pipe(), os.pipe()
    yield Channel(there[0], here[1]), Channel(here[0], there[1])
    for handle in (*there, *here):
        try:
            os.close(handle)
        except OSError:
            continue


def soon() -> float:
    return time.monotonic() + 5


def test_a_folder_arrives_as_it_was_whatever_its_size(ends: tuple[Channel, Channel], tmp_path: Path) -> None:
    near, far = ends
    (tmp_path / "a" / "inputs").mkdir(parents=True)
    (tmp_path / "a" / "inputs" / "0.npy").write_bytes(os.urandom(3_000_000))  # more than a pipe holds
    (tmp_path / "a" / "empty").write_bytes(b"")
    sender = threading.Thread(target=send_folder, args=(near, {"do": "put"}, tmp_path / "a"))
    sender.start()
    message = far.receive(soon())
    (tmp_path / "b").mkdir()
    receive_folder(far, message["files"], tmp_path / "b")
    sender.join()
    assert message["do"] == "put"
    for name in ("inputs/0.npy", "empty"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize(
    "files",
    [[["../x", 1]], [["/etc/x", 1]], [["a/../../x", 1]], [["", 1]], [[".", 1]], [["a\0b", 1]], [["x", -1]],
     [["x", 1 << 40]], [["x", "much"]], ["x"], 7],
)  # fmt: skip
def test_files_that_lead_out_of_the_folder_or_are_no_files_are_refused(
    ends: tuple[Channel, Channel], tmp_path: Path, files: object
) -> None:
    with pytest.raises(Lost):
        receive_folder(ends[0], files, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_read_to_its_end(ends: tuple[Channel, Channel], tmp_path: Path) -> None:
    near, far = ends
    (tmp_path / "taken").write_text("a file where a folder is needed")
    near.write(b"x" * 10)
    near.send({"next": 1})
    with pytest.raises(OSError):
        receive_folder(far, [["taken/file", 6], ["other", 4]], tmp_path)
    assert far.receive(soon()) == {"next": 1}


def test_what_a_login_prints_is_passed_over(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    near.write(b"Welcome!\nlast login: mark\n\xff\x00 mark 1 {}\nrest")
    assert far.line(b"mark 1 ", soon()) == b"{}"
    assert far.read(4, soon()) == b"rest"


def test_waiting_ends(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    with pytest.raises(Late):
        far.receive(time.monotonic() + 0.05)
    os.close(near.sink)
    with pytest.raises(Lost):
        far.receive(soon())


def test_noise_is_no_message(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    near.write(b"\xff\xff\xff\xff")
    with pytest.raises(Lost, match="no message of ours"):
        far.receive(soon())
    for noise in (b"{]", b"[]"):
        near.write(b"\x02\x00\x00\x00" + noise)
        with pytest.raises(Lost, match="no message of ours"):
            far.receive(soon())


def test_nothing_is_sent_on_a_closed_channel(ends: tuple[Channel, Channel]) -> None:
    ends[0].close()
    with pytest.raises(Lost):
        ends[0].send({"do": "ping"})
