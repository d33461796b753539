"""Detection sets: reading, checking, augmenting, scoring."""
