"""Large text, from files to packed token ids: numpy only."""
