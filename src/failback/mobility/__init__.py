"""The mobility service: captures every write of the protected machine's disks and sends it on.

``main`` serves · ``facts`` what the machine is · ``reconcile`` assignment to running stream · ``stream`` ring to batches ·
``passes`` comparing and copying disks · ``outstanding`` what is sent and not yet safe · ``freeze``, ``mounts``, ``watchdog``
application-consistent marks and the freeze lease · ``group``, ``hold``, ``cgroups``, ``kernel_servers`` the common marks of a
replication group · ``lag`` how old data is when it lands · ``bundle`` the offline archive.
"""
