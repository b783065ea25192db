"""Comparing methods: one plan, ordinary runs, honest statistics, one report."""
