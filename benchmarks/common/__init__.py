"""What the benchmark scripts share: data, models, peers, timing and the record of results."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if str(ROOT) not in sys.path:  # scripts are run by path, and borrow tests/support/weights.py
    sys.path.insert(0, str(ROOT))
