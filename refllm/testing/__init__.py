"""For tests of applications that use refllm: fixtures, recorded calls, and a server.

Start with pytest_plugin.py, which pytest loads wherever refllm is installed; docs/testing.md is its
guide. recording.py is an engine that records and fails on request, server_process.py runs
`refllm serve`. It imports `refllm.spin` and the layers below; an import of the plugin alone must
stay cheap, so it imports engines only inside fixtures.
"""
