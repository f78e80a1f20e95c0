"""The command lines of ``docs/training.md`` on this machine: the model of one process."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.marks import only_with_all

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "training.md").read_text("utf-8").partition("## Several processes")[2]
SCRIPT = re.findall(r"^```python\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)[0]
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)[0].splitlines()
#: The programs, of this interpreter.
MODULES = {
    "python": [],
    "torchrun": ["-m", "torch.distributed.run"],
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
}


def launched(command: str, folder: Path, script: str) -> dict[str, torch.Tensor]:
    """Returns the weights that a command of the page leaves."""
    folder.mkdir()
    (folder / "train.py").write_text(script)
    program, *arguments = shlex.split(command)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, *MODULES[program], *arguments]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "trained" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_of_torchrun_train_the_model_of_one(tmp_path: Path) -> None:
    twice = SCRIPT.replace("batch_size=8", "batch_size=16")
    (command,) = (command for command in COMMANDS if command.startswith("torchrun"))
    assert "--nproc-per-node 2" in command and twice != SCRIPT
    alone, found = launched("python train.py", tmp_path / "one", twice), launched(command, tmp_path / "two", SCRIPT)
    for name, tensor in alone.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@only_with_all
@pytest.mark.skipif(torch.cuda.is_available(), reason="there accelerate starts two")
def test_accelerate_starts_one_process_where_there_are_no_gpus(tmp_path: Path) -> None:
    (command,) = (command for command in COMMANDS if command.startswith("accelerate"))
    alone, found = launched("python train.py", tmp_path / "one", SCRIPT), launched(command, tmp_path / "two", SCRIPT)
    assert all(torch.equal(found[name], tensor) for name, tensor in alone.items())


def test_the_page_has_a_line_for_each_launcher() -> None:
    programs = {shlex.split(command)[0] for command in COMMANDS}
    assert programs <= set(MODULES) and "torchrun" in programs
