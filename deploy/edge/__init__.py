"""What a bundle carries: detection without torch."""
