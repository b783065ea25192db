"""``python -m mimkit`` is the same program as ``mimkit``."""

from mimkit.cli import main

main()
