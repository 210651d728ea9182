"""Which configuration: the clock, the measuring, the compilation and the search."""

from tersparse import refuse_clashes

refuse_clashes()
