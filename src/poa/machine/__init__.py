"""Where a process computes: what its launcher says of it, and the devices that torch finds."""
