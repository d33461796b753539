"""Networks that others trained, from which HEAT's learn: run in processes of their own."""
