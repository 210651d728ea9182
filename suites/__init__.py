"""On what, and is it good enough: layer shapes, suites, records, the runner and the gate."""

from tersparse import refuse_clashes

refuse_clashes()
