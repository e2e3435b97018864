"""The master target: journals what arrives, applies it to the on-premises disks, publishes recovery points.

``main`` the process · ``config`` its TOML · ``replica`` one machine's disks, journal and applying thread · ``replicas`` all of
them, remembered over restarts · ``intake`` links from process servers · ``orders`` one-time work · ``volumes`` what retention
volumes and datastores are fit for.
"""
