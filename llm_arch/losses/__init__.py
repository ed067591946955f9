"""Terms that are added to a head's loss, one a file."""
