"""Speed, start-up and memory, measured beside what people use; README.md says how to run it."""
