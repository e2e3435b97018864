"""Block devices behind one narrow interface, and the fence that keeps a hypervisor away from them.

``device`` the interface · ``raw`` files and kernel block devices · ``vmdk`` flat VMDK · ``qcow2`` and ``nbd`` qcow2 through
qemu-storage-daemon · ``faulty`` wrappers that fail, wait or tear · ``locks`` QEMU's image locks ·
``replica_disk`` the ``.replica`` name, creating, opening.
"""
