"""Hypothesis without a clock: a busy machine fails no test."""

from hypothesis import settings

settings.register_profile("swarmd", deadline=None, print_blob=True)
settings.load_profile("swarmd")
