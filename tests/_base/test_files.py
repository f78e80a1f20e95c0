"""Files are written whole, on every system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
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


LEAVES = """
import os, sys
from pathlib import Path
from fxprune._base.files import replaced

with replaced(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os._exit(9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks that end with their process")
def test_what_a_killed_process_left_is_cleared_and_what_another_is_at_is_not(tmp_path: Path) -> None:
    target = tmp_path / "[a]"
    assert subprocess.run([sys.executable, "-c", LEAVES, str(target)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with files.replaced(target) as one:
        one.write_text("one")
        with files.replaced(target) as other:
            other.write_text("other")
        assert one.read_text() == "one" and target.read_text() == "other"
    assert target.read_text() == "one" and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks that end with their process")
def test_an_empty_draft_may_be_somebodys_for_a_minute(tmp_path: Path) -> None:
    (left := tmp_path / ".a.xyz.fxprune-draft").mkdir()
    files.write_text(tmp_path / "a", "b")
    assert left.exists()
    os.utime(left, (0, 0))
    files.write_text(tmp_path / "a", "b")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
