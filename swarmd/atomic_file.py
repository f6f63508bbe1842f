"""Write a file whole or not at all.

A new file beside the old one is written, flushed to the disk and then put in its place, so a
reader sees the old content or the new one, also after a crash (rename(2) is atomic).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

__all__ = ["PRIVATE", "PUBLIC", "write_file"]

PRIVATE = 0o600
"""Mode of what is the user's own: keys, contacts, evidence."""
PUBLIC = 0o644
"""Mode of what others on the machine may use as well: models."""


def write_file(
    path: Path, content: bytes | str, *, mode: int = PRIVATE, replace: bool = True
) -> None:
    """Write `content` (a text as UTF-8) to `path`, whose folder must be there.

    Raises OSError, and then `path` is what it was before and nothing is left beside it;
    FileExistsError if there is a file already and `replace` is false.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode != PRIVATE:
            os.chmod(temporary, mode)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename it fails where there is a file already
    finally:
        with contextlib.suppress(OSError):  # after a rename it has gone
            os.unlink(temporary)
