"""Classes of block I/O: names for limits and weights of devices, out of a file.

    Classes:
      slow:
      - Weight: 50
      - {Devices: ["/dev/vd*"], ThrottleReadBps: 10M}

Source: pkg/blockio of intel/goresctrl, which containerd uses.
"""

import glob
import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final

from orlop.base import yaml_text
from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.oci.spec import BlockIO, ThrottleDevice, WeightDevice

Classes = Mapping[str, Sequence[Mapping[str, Any]]]  # Any: JSON

_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_THROTTLES: Final = {
    "ThrottleReadBps": "throttle_read_bps_device",
    "ThrottleWriteBps": "throttle_write_bps_device",
    "ThrottleReadIOPS": "throttle_read_iops_device",
    "ThrottleWriteIOPS": "throttle_write_iops_device",
}
_KNOWN: Final = {"Devices", "Weight", *_THROTTLES}


def load(path: str) -> Classes:
    """Read a file of classes.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is not YAML, or JSON, of that form.
    """
    try:
        with open(path, "rb") as file:
            value = yaml_text.loads(file.read())
    except OSError as error:
        raise NotFoundError(f"blockio-config-file error: {path}: {(error.strerror or '').lower()}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"blockio-config-file error: {path} is no YAML: {error}") from error
    classes = value.get("Classes") if isinstance(value, dict) else None
    if not isinstance(classes, dict) or not all(
        isinstance(one, list) and all(isinstance(part, dict) for part in one) for one in classes.values()
    ):
        raise InvalidArgumentError(f'blockio-config-file error: {path} has no "Classes" that are lists of objects')
    return classes


def parameters(classes: Classes, name: str) -> BlockIO:
    """What a class asks of the cgroup, for the devices that this host has.

    Raises:
        NotFoundError: there is no such class.
        InvalidArgumentError: something in it cannot be understood.
    """
    if name not in classes:
        raise NotFoundError(f"blockio-class error: no OCI BlockIO parameters for class {name!r}")
    found = BlockIO()
    for part in classes[name]:
        unknown = set(part) - _KNOWN
        if unknown:
            raise InvalidArgumentError(f"blockio-class error: class {name!r}: unknown {', '.join(sorted(unknown))}")
        devices = part.get("Devices") or []
        weight = _number(part["Weight"], name) if "Weight" in part else None
        if not devices:
            if any(key in part for key in _THROTTLES):
                raise InvalidArgumentError(f"blockio-class error: class {name!r}: throttling needs Devices")
            found.weight = weight
            continue
        for major, minor in _devices(devices):
            if weight is not None:
                found.weight_device.append(WeightDevice(major=major, minor=minor, weight=weight))
            for key, attribute in _THROTTLES.items():
                if key in part:
                    throttle = ThrottleDevice(major=major, minor=minor, rate=_number(part[key], name))
                    getattr(found, attribute).append(throttle)
    return found


def _devices(patterns: Sequence[str]) -> list[tuple[int, int]]:
    """Numbers of the block devices that match; what is none, or not there, is passed over as by goresctrl."""
    found = []
    for path in sorted({path for pattern in patterns for path in glob.glob(str(pattern))}):
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            found.append((os.major(status.st_rdev), os.minor(status.st_rdev)))
    return found


def _number(value: object, name: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([kMGT]?|[KMG]i)", str(value))
    if match is None:
        raise InvalidArgumentError(f"blockio-class error: class {name!r}: {value!r} is no number")
    return int(match[1]) * _UNITS[match[2]]
