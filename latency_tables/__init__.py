"""Measures the latency of each part of a network on a device, and predicts whole networks."""
