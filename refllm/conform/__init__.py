"""Whether a backend of the interface is right, and if not, which part of it is wrong.

Start at `runner`: it asks a target (`targets`) every case of the golden suite (`suite`), compares
each answer with the right one (`compare`), and explains the differences by known faults
(`faults`). `report` writes the verdicts for people and machines. `python -m refllm conform` is the
command. This package may import everything but `refllm.cli`.
"""
