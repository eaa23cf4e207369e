"""Groups of the command's sub-commands."""
