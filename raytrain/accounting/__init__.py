"""What an architecture costs: FLOPs, parameters, memory, and the peaks of devices. Pure: no torch."""
