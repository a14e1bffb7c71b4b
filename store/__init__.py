"""Content-addressed blobs and names on disk, safe against crashes, full disks and each other. Standard library only."""

from . import media
from .blobs import Put
from .digest import Digest
from .errors import (
    BadArchive,
    BadSource,
    Corrupt,
    Denied,
    Exists,
    InvalidDigest,
    InvalidName,
    Locked,
    Mismatch,
    NoSpace,
    NotFound,
    ReadOnly,
    StoreError,
)
from .manifest import Layer, Manifest
from .names import ModelName
from .store import Damage, Ref, Store

__all__ = [
    "BadArchive",
    "BadSource",
    "Corrupt",
    "Damage",
    "Denied",
    "Digest",
    "Exists",
    "InvalidDigest",
    "InvalidName",
    "Layer",
    "Locked",
    "Manifest",
    "Mismatch",
    "ModelName",
    "NoSpace",
    "NotFound",
    "Put",
    "ReadOnly",
    "Ref",
    "Store",
    "StoreError",
    "media",
]
