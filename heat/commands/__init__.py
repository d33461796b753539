"""The commands of `heat`, one function each; `heat.cli` lists them."""
