"""Files are written whole or not at all, and only over regular files."""

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flerm_fx.boundary.files import check, path_of, write_all, write_whole
from flerm_fx.dump import dump
from flerm_fx.dump.plot import write_plot
from flerm_fx.errors import FlermError, InputError, ProfileError
from tests.dump.examples import one
from tests.dump.report.profiles import profile

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail_at(monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException) -> None:
    """Make the writing of a file's content, its flushing to the disk or its renaming fail."""

    def failing(*_: object) -> None:
        raise error

    if where != "write":
        monkeypatch.setattr(os, where, failing)
        return
    opened = Path.open

    def half_open(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = opened(self, *args, **kwargs)
        file.write(b"half")
        file.flush()
        file.close()
        raise error

    monkeypatch.setattr(Path, "open", half_open)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]
)
def test_what_fails_leaves_what_was_there(
    path: Path,
    where: str,
    old: bytes | None,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if old is not None:
        path.write_bytes(old)
    with monkeypatch.context() as patch:
        fail_at(patch, where, error)
        with pytest.raises(type(error)):
            write_whole(path, b"new")
    assert os.listdir(path.parent) == ([path.name] if old else [])
    assert old is None or path.read_bytes() == old


def test_a_disk_that_is_full_leaves_a_dump_and_a_picture(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    picture = path.with_suffix(".svg")
    for file in (path, picture):
        file.write_text("old")
    run = profile(["weight"], steps=(0, 1))
    with monkeypatch.context() as patch:
        fail_at(patch, "fsync", full)
        with pytest.raises(
            InputError, match=r"file' \(No space left on device\); nothing that was"
        ):
            dump([one()], None, path=path)
        with pytest.raises(InputError, match=r"written there \(No space left on device\)"):
            write_plot({"run": run}, picture)
    assert path.read_text() == picture.read_text() == "old"
    assert len(os.listdir(path.parent)) == 2


def test_several_files_are_all_written_before_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"old")
    synced = os.fsync
    calls = []

    def second_fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        synced(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", second_fails)
        with pytest.raises(OSError, match="full"):
            write_all({one: b"new", other: b"new"})
    assert os.listdir(tmp_path) == ["one"]
    assert one.read_bytes() == b"old"
    write_all({one: b"new", other: b"new"})
    assert one.read_bytes() == other.read_bytes() == b"new"


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o644, 0o755])
def test_a_mode_is_kept(path: Path, bits: int) -> None:
    path.touch()
    path.chmod(bits)
    write_whole(path, b"new")
    assert mode(path) == bits
    assert path.read_bytes() == b"new"


def test_the_content_of_a_secret_file_is_never_readable_by_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    path.chmod(0o600)
    modes = []
    touched = Path.touch

    def touching(self: Path, *args: Any, **kwargs: Any) -> None:
        touched(self, *args, **kwargs)
        modes.append(mode(self))

    monkeypatch.setattr(Path, "touch", touching)
    write_whole(path, b"secret")
    assert modes == [0o600]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_whole(path, b"new")
    finally:
        os.umask(before)
    assert mode(path) == 0o666 & ~mask


def test_an_owner_is_kept_where_possible(path: Path) -> None:
    path.touch()
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    before = path.stat()
    write_whole(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (before.st_uid, before.st_gid)


# What is written by anything in the package, and the class of the error that it refuses with.
Writer = Callable[[Path], object]
WRITERS: dict[str, tuple[Writer, type[FlermError]]] = {
    "save": (lambda path: profile(["weight"]).save(path), ProfileError),
    "dump": (lambda path: dump([one()], None, path=path), InputError),
    "plot": (lambda path: write_plot({"a": profile(["w"], steps=(0, 1))}, path), InputError),
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> tuple[Writer, type[FlermError]]:
    return WRITERS[request.param]


@pytest.fixture(params=["FIFO", "socket", "device"])
def special(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A path that holds no regular file; of a picture by its ending."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.svg"
        if request.param == "FIFO":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/null")
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        yield path


def test_what_is_no_regular_file_is_refused_and_stays(
    special: Path, writer: tuple[Writer, type[FlermError]]
) -> None:
    write, kind = writer
    before = special.stat()
    with pytest.raises(kind, match=r"it\.svg.*\(it is a (FIFO|socket|device), and nothing but a"):
        write(special)
    assert special.stat().st_mode == before.st_mode
    assert os.listdir(special.parent) == ["it.svg"]


def test_hard_links_are_refused_and_stay(
    tmp_path: Path, writer: tuple[Writer, type[FlermError]]
) -> None:
    write, kind = writer
    path, other = tmp_path / "it.svg", tmp_path / "other"
    path.write_text("old")
    os.link(path, other)
    with pytest.raises(
        kind, match="it is one of 2 hard links to a file, and the others would keep"
    ):
        write(path)
    assert path.samefile(other)
    assert other.read_text() == "old"


def test_folders_are_refused(tmp_path: Path, writer: tuple[Writer, type[FlermError]]) -> None:
    write, kind = writer
    (path := tmp_path / "it.svg").mkdir()
    with pytest.raises(kind, match="Is a directory"):
        write(path)
    assert os.listdir(tmp_path) == ["it.svg"]
    assert not os.listdir(path)


def test_links_are_followed(tmp_path: Path, writer: tuple[Writer, type[FlermError]]) -> None:
    write, kind = writer
    link, target = tmp_path / "it.svg", tmp_path / "target.svg"
    link.symlink_to(target)
    for _ in range(2):  # the first time there is nothing at its end
        write(link)
        assert link.is_symlink()
        assert target.stat().st_size > 0
    link.unlink()
    link.symlink_to(tmp_path / "none" / "target.svg")
    with pytest.raises(kind, match="No such file or directory"):
        write(link)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(kind, match="Too many levels of symbolic links"):
        write(link)
    assert sorted(os.listdir(tmp_path)) == ["it.svg", "target.svg"]


def test_names_that_no_file_has(tmp_path: Path, writer: tuple[Writer, type[FlermError]]) -> None:
    write, kind = writer
    for name in ("null\0.svg", "surrogate\ud800.svg", 300 * "x" + ".svg"):
        with pytest.raises(kind):
            write(tmp_path / name)
    longest = tmp_path / ("é" * 125 + ".svg")  # 254 of 255 bytes
    write(longest)
    assert os.listdir(tmp_path) == [longest.name]


def test_what_is_no_path_is_refused_by_name(writer: tuple[Writer, type[FlermError]]) -> None:
    write, _ = writer
    wrong: list[Any] = [b"file.svg", 3]
    for path in wrong:
        with pytest.raises(InputError, match=f"a path is a str .* got {type(path).__name__}"):
            write(path)
    assert path_of(Path("a") / "b") == path_of("a/b")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who is not the administrator, and may write everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        administrator = os.geteuid() == 0
        if administrator:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            Path(folder).chmod(0o700)
            if administrator:
                os.seteuid(0)


def test_a_folder_or_a_file_that_may_not_be_written(unprivileged: Path) -> None:
    file = unprivileged / "file"
    file.write_text("old")
    file.chmod(0o400)
    for call in (lambda: write_whole(file, b"new"), lambda: check(file)):
        with pytest.raises(PermissionError):
            call()
    file.chmod(0o600)
    check(file)
    unprivileged.chmod(0o500)
    for path in (file, unprivileged / "new"):
        for call in (lambda path=path: write_whole(path, b"new"), lambda path=path: check(path)):
            with pytest.raises(PermissionError):
                call()
    assert file.read_text() == "old"
    assert os.listdir(unprivileged) == ["file"]


def test_a_check_leaves_all_as_it_was(path: Path) -> None:
    check(path)
    assert os.listdir(path.parent) == []
    path.write_text("old")
    before = path.stat()
    check(path)
    assert path.stat() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_the_program_s_own_output_is_no_file(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.write_text("before\n")
    reading = -1
    if kind == "file":  # as a shell does for >> out
        target = os.open(out, os.O_WRONLY | os.O_APPEND)
    else:
        reading, target = os.pipe()
    saved = os.dup(1)
    try:
        os.dup2(target, 1)
        with pytest.raises(InputError) as raised:
            dump([one()], None, path="/dev/stdout")
    finally:
        os.dup2(saved, 1)
        for descriptor in {saved, target, reading} - {-1}:
            os.close(descriptor)
    what = {"file": "what this program's own output goes to", "pipe": "a FIFO, and nothing but"}
    assert f"cannot write to '/dev/stdout' (it is {what[kind]}" in str(raised.value)
    assert out.read_text() == "before\n"
