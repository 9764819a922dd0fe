"""What made the goldens, measured the elementary functions, and writes what models learn from."""
