"""Own measurements: rows of throughput, compile time and memory, beside their peers."""
