"""One family of ops a file; importing the package fills the rule tables."""

import importlib
import pkgutil

from fxprune.ops.registry import for_several_versions

with for_several_versions():
    for _family in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(_family.name)
