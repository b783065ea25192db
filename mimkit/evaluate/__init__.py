"""Judging a pre-trained encoder: its own task held out, frozen features, fine-tuning.

Called, the package is `mimkit.api.evaluate`, which judges finished runs:

>>> folder = run(tiny, settings=["train.total_steps=4"])
>>> evaluate(folder, evaluate=["knn"]).is_run
True
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """What is called ``mimkit.evaluate`` both as a package and as a function.

    Whichever submodule is imported first makes this package an attribute of ``mimkit``.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return importlib.import_module("mimkit.api").evaluate(*arguments, **options)


sys.modules[__name__].__class__ = _Package
