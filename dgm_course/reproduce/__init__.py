"""Experiments of papers that take minutes: each is a command here, and its results are kept as a record.

``python -m dgm_course reproduce NAME`` runs one; a lecture shows what `load` gives, with `Record.provenance`
in the caption, as recorded and not as computed there and then.
"""

from dgm_course.reproduce.record import Record, load, save

__all__ = ["Record", "load", "save"]
