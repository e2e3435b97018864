"""Who belongs to this installation: its certificate authority, its passphrase and one-time tokens, and the first start.

``authority`` issues certificates · ``secrets`` makes and checks passphrases and tokens · ``desk`` enrols components ·
``bootstrap`` makes at the first start what an installation needs · ``routes`` is the components' own HTTP API.
"""
