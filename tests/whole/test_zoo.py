"""A sample of the coverage table: every rule family on whole networks, pruned to 0.7 and 0.4 and verified."""

from __future__ import annotations

import pytest

from benchmarks.common.architectures import select
from benchmarks.common.coverage import BUDGETS, examine
from tests.support.marks import sampled

WRITTEN = (
    "unet-transposed",
    "lstm-tagger",
    "gru-tagger",
    "tcn",
    "spectral-norm",
    "dynamic-conv",
    "espcn",
    "yolo-c2f",
    "shufflenet-v2",
    "cbam",
    "moe-einsum",
    "window-attention",
    "gqa-rotary",
)
TIMM = ("test_efficientnet", "test_coatnet", "test_vit2", "test_nfnet")
TRANSFORMERS = ("bloom", "mixtral", "deberta-v2", "albert", "swinv2", "t5")
SAMPLE = [
    f"{collection}:{name}"
    for collection, names in (("written", WRITTEN), ("timm", TIMM), ("transformers", TRANSFORMERS))
    for name in names
]


@pytest.mark.parametrize("name", sampled(SAMPLE, 5))
@pytest.mark.slow
def test_both_budgets_are_met_and_verified(name: str) -> None:
    (entry,) = select(names=[name])
    found = examine(entry, 0)
    assert "error" not in found, found["error"]
    assert [found[str(budget)]["status"] for budget in BUDGETS] == ["verified", "verified"]
    assert all(found[str(budget)]["kept"] <= budget for budget in BUDGETS)


def test_every_model_file_of_timm_has_a_line() -> None:
    import timm
    from timm.models import _registry

    files = {_registry._model_to_module[name] for name in timm.list_models()}
    lines = {_registry._model_to_module[entry.name.partition(":")[2]] for entry in select(["timm"])}
    assert lines == files
