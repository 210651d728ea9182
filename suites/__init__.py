"""On what, and is it good enough: layer shapes, suites, records, the runner and the gate."""
