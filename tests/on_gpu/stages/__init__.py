"""The stages: each module has ``run(work, *arguments)``, and may be run alone or fail alone."""
