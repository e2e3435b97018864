"""Fabric drivers: hypervisors and clouds behind small capability interfaces; no driver knows another.

``interfaces`` what the workflows need · ``kvm`` libvirt · (``vsphere`` and ``azure`` follow the same interfaces).
"""
