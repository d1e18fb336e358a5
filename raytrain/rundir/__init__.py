"""Folders on disk: those of runs and studies, their logs, and the cache. Pure: no torch."""
