"""The contract: the records that flow between parts, and the five kinds of part."""
