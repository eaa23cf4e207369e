"""One file for each kind of backbone."""
