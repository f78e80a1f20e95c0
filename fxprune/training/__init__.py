"""Training after pruning: fine-tuning what is left, or training it anew.

torch, and `accelerate` and `torchmetrics`, the extra ``train``, are imported when a run needs them.
"""

from fxprune.training.history import Epoch, History
from fxprune.training.recipe import RECIPES, Recipe
from fxprune.training.tune import TrainingOptions, finetune, retrain

__all__ = ["RECIPES", "Epoch", "History", "Recipe", "TrainingOptions", "finetune", "retrain"]
