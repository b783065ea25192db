"""The parts of this plugin keep the contract."""

from mimkit.conformance import conformance

test_parts = conformance("mimkit-mae")
