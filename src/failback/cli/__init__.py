"""The command line: one file per noun, speaking only the REST API of a configuration server.

``settings`` where the server is · ``client`` one call, errors with cause and remedy · ``output`` tables, JSON, sizes, exit
statuses · ``watch`` following a job. httpx and rich are imported when a command needs them: ``--help`` stays fast.
"""
