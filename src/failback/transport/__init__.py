"""Connections between our own parts, all with mutual TLS.

``identity`` enrolment and certificates · ``control`` heartbeats, assignments and orders from the configuration server ·
``link`` the replication links between mobility service, process server and master target.
"""
