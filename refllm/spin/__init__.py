"""Spin's side of the interface: manifests, runtime configuration, remote engines, a stand-in SDK.

Start with `manifest`, which reads the models of a component from spin.toml, and `remote`, an engine
that sends its requests to another machine as Spin's `remote_http` does.
"""
