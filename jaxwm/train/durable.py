"""Writing files so that a crash leaves the old content or the new, never a part."""

import os
import pathlib
import shutil

PREFIX = ".tmp-"  # names of everything unfinished; swept away at the next start


def sync(path: pathlib.Path) -> None:
    """Flushes one file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: pathlib.Path) -> None:
    """Flushes every file and directory below `root`, and `root` itself."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync(pathlib.Path(folder, name))
        sync(pathlib.Path(folder))


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file's content in one step."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file's content in one step."""
    temporary = path.with_name(f"{PREFIX}{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_tree(path: pathlib.Path) -> None:
    """Deletes a directory so that a crash half way leaves only a `PREFIX` name."""
    doomed = path.with_name(f"{PREFIX}gone-{path.name}-{os.getpid()}")
    path.rename(doomed)
    sync(path.parent)
    shutil.rmtree(doomed)


def sweep(folder: pathlib.Path) -> list[str]:
    """Deletes what crashes left unfinished in `folder`; returns the names."""
    left = sorted(folder.glob(f"{PREFIX}*")) if folder.is_dir() else []
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in left]
