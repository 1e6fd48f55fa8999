"""Files are written whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flerm_fx.errors import InputError


def path_of(path: object) -> Path:
    """Return a path that a caller named.

    Raises:
        InputError: it is no ``str``, nor an ``os.PathLike`` of one.

    >>> path_of("base.safetensors").suffix
    '.safetensors'
    """
    named = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(named, str):
        raise InputError(
            f"a path is a str or a pathlib.Path, such as 'base.safetensors'; got "
            f"{type(named).__name__}"
        )
    return Path(named)


def kind_of(mode: int) -> str:
    """Return in words what a mode of ``os.stat`` says that a path is.

    >>> kind_of(stat.S_IFIFO), kind_of(stat.S_IFREG)
    ('a FIFO', 'a file')
    """
    return _KINDS.get(stat.S_IFMT(mode), "a file")


def reason(error: OSError | ValueError) -> str:
    """Return why the system refused a path, without the path."""
    return str(getattr(error, "strerror", None) or error)


def check(path: Path) -> None:
    """Find out before long work whether a file can be written, and leave what is there as it is.

    Raises:
        OSError: as :func:`write_whole`.
    """
    place, _ = _place(path)
    with tempfile.TemporaryFile(dir=place.parent):
        pass


def write_whole(path: Path, content: bytes) -> None:
    """Put a file with this content at a path, or leave all as it was.

    The content is written beside the path, flushed to the disk and renamed, so that whatever
    interrupts it, what was there stays. A file that is replaced hands on its mode, its extended
    attributes and, where the system lets it, its owner; a new one has the umask's mode. A link
    stays a link, and what it points to is written.

    Raises:
        OSError: the path cannot be written, or holds anything but a regular file of one name: to
            replace a FIFO or a device would remove it, and to replace one of several hard links
            would part it from the others.
    """
    write_all({path: content})


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write several files as :func:`write_whole` does; none is replaced before all are on the disk.

    Raises:
        OSError: as :func:`write_whole`.
    """
    renames: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            place, old = _place(path)
            # Not the whole name, which may be as long as names can be.
            name = f".{place.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
            temporary = place.with_name(name)
            renames.append((temporary, place))
            temporary.touch(0o666 if old is None else 0o600, exist_ok=False)
            if old is not None:
                _hand_on(place, old, temporary)
            with temporary.open("r+b") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for temporary, place in renames:
            os.replace(temporary, place)
    except BaseException:
        for temporary, _ in renames:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_OUTPUTS = (1, 2)  # descriptors of the standard output and error


def _place(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return where a file is to be renamed to, behind links, and what is there."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    except ValueError as error:  # a null byte, or a character that no path has
        raise OSError(errno.EINVAL, str(error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        what = kind_of(status.st_mode)
        raise OSError(errno.EINVAL, f"it is {what}, and nothing but a regular file is replaced")
    if any(_is_open_as(descriptor, status) for descriptor in _OUTPUTS):
        raise OSError(errno.EINVAL, "it is what this program's own output goes to")
    if status.st_nlink > 1:
        raise OSError(
            errno.EINVAL,
            f"it is one of {status.st_nlink} hard links to a file, and the others would keep what "
            "is in it now; remove this one first, if that is meant",
        )
    os.close(os.open(path, os.O_WRONLY))  # what may not be written may not be replaced
    return Path(os.path.realpath(path)), status


def _is_open_as(descriptor: int, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), status)
    except OSError:  # closed
        return False


def _hand_on(place: Path, old: os.stat_result, new: Path) -> None:
    """Give a file the owner, mode and extended attributes of the one that it replaces."""
    if hasattr(os, "chown"):
        for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
            with contextlib.suppress(PermissionError):
                os.chown(new, owner, group)
    shutil.copystat(place, new)
