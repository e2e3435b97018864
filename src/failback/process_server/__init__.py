"""The process server: accepts the streams of many machines, spools them durably, forwards them in order.

``spool`` one machine's items on disk · ``space`` the bound on all spools · ``stream`` one machine's stream between its
two links · ``intake`` the link from the agent · ``forward`` the link to the master target · ``assignment`` which machines
are served · ``main`` the process. Payloads are never unpacked.
"""
