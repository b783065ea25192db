"""From a recipe to a run folder: data, parts, training, evaluation, report."""
