"""The lab: all roles, two sites and a real guest on one machine, for a first try, for demonstrations and for tests.

``requirements`` says what this machine lacks; ``image`` builds the guest; ``sites`` starts two libvirt daemons;
``servers`` starts the roles; ``laboratory`` puts them together (up, status, down); ``demo`` tells the main story and checks it.
"""
