"""The nouns of the product: frozen dataclasses and enums; no input, no output, no behaviour that waits.

``ids`` what things are called · ``stream`` what travels from the captured disks to the replica ·
``components`` what a role tells the configuration server and is told by it · ``orders`` one-time work and its arguments ·
``points`` recovery points and replicas · ``policy`` replication policies.
"""
