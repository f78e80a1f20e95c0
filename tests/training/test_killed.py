"""A process that ends while it writes a checkpoint: what is left is the old one or the new one, whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = """
import os, sys
from pathlib import Path
import torch
from fxprune._base import files
from fxprune.training import checkpoint
from fxprune.training.history import History

directory, model = Path(sys.argv[1]), torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
save_file = checkpoint.save_file


def slowly(tensors, path, metadata):
    save_file(tensors, path, metadata=metadata)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    path.write_bytes(whole)


def write(value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    checkpoint.write(directory, model, optimizer, History({}, ()), {})


def die_at(moment):
    seen = []

    def hook(event, args):
        seen.append(event)
        if len(seen) > moment:
            os._exit(1)  # nothing is tidied up

    sys.addaudithook(hook)


checkpoint.save_file = slowly
files._is_new = lambda folder: False  # nobody else writes
write(1.0)
for moment in range(1000):
    child = os.fork()
    if not child:
        die_at(moment)
        write(2.0)
        os._exit(0)
    done = os.waitpid(child, 0)[1] == 0
    (value,) = {float(x) for w in checkpoint.read(directory, model, {}).weights.values() for x in w.flatten()}
    print(int(value), end="")
    if done:
        break
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_a_process_killed_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("1{5,}2+", done.stdout)
