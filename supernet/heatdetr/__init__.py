"""HeatDETR: its architecture, operators, supernet, and what is cut out of it."""
