"""Which configuration: the clock, the measuring, the compilation and the search."""
