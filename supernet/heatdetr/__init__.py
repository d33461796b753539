"""HeatDETR: its architecture, operators, supernet, and networks cut out of it."""
