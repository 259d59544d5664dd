"""Whether work on CPUs is worth sharing out."""

import os

from fusechat.config import ClusterSection


def has_several_cpus(section: ClusterSection) -> bool:
    """A cluster given by address is there because one machine is not enough; a local Ray takes the CPUs it is told."""
    return section.ray_address is not None or (section.num_cpus or os.cpu_count() or 1) > 1
