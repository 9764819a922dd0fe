"""A server under load for long: `python -m tools.soak --minutes 30 --clients 64 [--json PATH]`.

Starts `refllm serve` on this machine with five small models that do not fit into its memory budget
together, and lets clients of five kinds ask it at the same time:

    good        a fixed set of requests; each answer is compared with the one computed alone
    streaming   the same, as server-sent events
    bad         wrong JSON, wrong keys, models that there are not
    slow        a byte a second
    vanishing   gone in the middle of a request, or of a stream

In the first third of the time the server is killed now and then, and started again. The two thirds
that follow belong to one process, whose memory, threads and descriptors are looked at.

It shows that every answer is the one that is computed alone, that nothing but an overload is
answered with a status of 500 or more, that memory stays flat, that threads and descriptors go back
to what they were after each model's first request, and that a new process soon answers. It prints
a table, and exits with 1 where one of these does not hold.
"""
