"""Measures how long each part of a network takes on a device, and adds it up."""
