"""Exports detectors, checks that the export is what was trained, and runs it without torch."""
