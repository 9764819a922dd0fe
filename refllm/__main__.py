"""`python -m refllm` is the command `refllm`."""

from refllm.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
