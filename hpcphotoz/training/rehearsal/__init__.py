"""Rehearses a run of many ranks in one process, without writing anything."""
