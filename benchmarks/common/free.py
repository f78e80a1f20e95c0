"""Options under which criteria and recoveries are compared: any widths, and all calibration data to recovery."""

from __future__ import annotations

from typing import Any

FREE: dict[str, Any] = {"round_to": 1, "holdout": 0}
