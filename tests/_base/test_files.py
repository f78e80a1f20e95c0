"""Files are written whole, on every system."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fxprune._base import files


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_systems_that_cannot_sync_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(files.os, "fsync", fsync)
    if code == errno.EIO:
        with pytest.raises(OSError, match="no"):
            files.write_text(tmp_path / "a", "b")
    else:
        files.write_text(tmp_path / "a", "b")
        assert (tmp_path / "a").read_text() == "b"
