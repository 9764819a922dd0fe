"""`python -m refllm.spin.shim`: the command of `refllm.cli.handle`."""

from refllm.cli.handle import main

main()
