"""fxprune: a compiler for structured pruning of PyTorch models.

What is public is imported when it is first asked for, and torch with it: the command line shows its help without. Where each name
stands is in ``__init__.pyi``.
"""

import lazy_loader as _lazy_loader

from fxprune._base.moved import keep_old_names as _keep_old_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy_loader.attach_stub(__name__, __file__)

_keep_old_names()
