"""Times models on a device that has only numpy and a runtime; its files are carried there."""
