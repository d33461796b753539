"""Cutting a supernet down until it meets a target: moves, search, evaluation, measurement."""
