"""How kernels are compiled, cached on disk, and run on threads.

Start with `compile`: the decorators of every kernel. `disk_cache` and `stored` keep machine code on
disk, `archive` carries it to other machines, `workers` has other processes compile, `cpu` has the
CPU's vector registers, `threads` and `cpu_sharing` choose the number of threads, and `buffers` has
the array types and the memory of large arrays.

Imports `refllm.files` and nothing else of the package.
"""
