"""What is carried to a device to time models there: numpy and a runtime only."""
