"""Studies: experiments beside the leaderboard, one file for each kind, found by looking here.

A study is a function `(settings, given) -> tables`, registered under its kind with `@study(kind,
Settings)`. It takes typed settings and the model it starts from, and returns tables of records by
file name. Studies whose comparisons could never be significant are refused before they are run.
"""

import pkgutil
from importlib import import_module

from advprune.studies.base import Given, check_studies, reads_of, run_study, settings_of

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Given", "check_studies", "reads_of", "run_study", "settings_of"]
