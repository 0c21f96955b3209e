"""System calls and kernel probes, under the kernel's names; knows nothing of orlop and imports little.

Extended attributes have no module here: `os.setxattr` and its kin take descriptors and `follow_symlinks=False`.
"""
