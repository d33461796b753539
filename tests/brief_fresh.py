"""Measures a network in a fresh process, as `latency_tables.probe.fresh`, in fewer rounds."""

import sys

import latency_tables.probe.batch
from latency_tables.probe.fresh import fresh_main

latency_tables.probe.batch.NETWORK_ROUNDS = latency_tables.probe.batch.NETWORK_MIN_ROUNDS = 3

if __name__ == "__main__":
    sys.exit(fresh_main(sys.argv[1:]))
