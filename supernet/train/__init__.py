"""Training: feeding, losses, the loop, its files."""
