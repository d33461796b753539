"""Ground floor: architecture, operators, detector, loss, supernet, data, training."""
