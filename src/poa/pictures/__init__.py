"""Pictures of what networks see: attention, features as colours, neighbours, matches and prototypes."""
