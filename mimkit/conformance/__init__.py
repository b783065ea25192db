"""Checks that every part must pass, for plugin authors: by pytest, or by ``mimkit check``."""

from mimkit.conformance.examine import Verdict, examine
from mimkit.conformance.suite import conformance

__all__ = ["Verdict", "conformance", "examine"]
