"""Whether a backend of the interface is right, and if not, which part of it is wrong.

`golden/` holds the questions and answers; here is what asks them (`runner`) of a backend, which is
reached as a `Target`: over HTTP (`http`), as a command that speaks JSON lines (`command`), as a
Python object (`entry_point`) or as a component (`component`). `compare` finds the first thing that
differs, `faults` has the known causes, and the `report_…` files tell people and machines.
"""
