"""Training after pruning: fine-tuning what is left, or training it anew.

`accelerate` and `torchmetrics`, the extra ``train``, are imported when a run needs them.
"""

from fxprune.training.history import Epoch, History
from fxprune.training.recipe import RECIPES, Recipe
from fxprune.training.tune import finetune, retrain

__all__ = ["RECIPES", "Epoch", "History", "Recipe", "finetune", "retrain"]
