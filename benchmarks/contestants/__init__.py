"""The programs that are measured, each in an interpreter of its own that needs only its library.

Importing this package imports none of them.
"""
