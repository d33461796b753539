"""The stages of the pipeline: one file each, each a function that records its result."""
