"""Telling trackers of experiments how a run goes, beside the run and never in its way."""
