"""`python -m goca.compare outputs/...`: runs beside each other, from their folders alone."""
