"""Opening image sets, and turning them into batches that are a pure function of the step."""
