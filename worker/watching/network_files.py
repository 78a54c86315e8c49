"""File systems that other hosts write to as well: the kernel here tells of our own changes only."""

from syncengine.kernel import file_system_type

_SHARED = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x517B: "SMB",
    0x01021997: "9p",
    0x65735546: "FUSE",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x19830326: "FhGFS",
    0x47504653: "GPFS",
    0x786F4256: "VirtualBox shared folders",
}


def shared_by_hosts(fd: int) -> str | None:
    """Return the name of the kind of file system of `fd`, if others can change it unseen.

    FUSE counts as one: the kernel cannot say where its server takes the files from.
    """
    return _SHARED.get(file_system_type(fd))
