"""Telling people: tables, figures and one HTML page from records. Needs neither torch, Triton nor a GPU."""

from tersparse import refuse_clashes

refuse_clashes()
