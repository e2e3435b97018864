"""KVM over libvirt: a fabric that can be either side of a failback.

``xml`` reads and rewrites domain definitions (pure), ``images`` runs qemu-img, ``driver`` is the fabric.
Needs the optional dependency ``failback[kvm]`` (libvirt-python) and the ``qemu-img`` program on the hypervisor's host.
"""
