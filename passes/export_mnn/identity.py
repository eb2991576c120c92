"""The identifier in an MNN file, which the converter draws at random: one of the content instead.

Equal graphs then give equal bytes. Runtimes that cache what they tune for a file use it as a key.
"""

from __future__ import annotations

import hashlib
import re
import struct
import uuid

from compressor.errors import PassError

_FIELD = 11
"""Number of ``mnn_uuid`` among the fields of ``Net`` (schema/default/MNN.fbs of MNN)."""
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LENGTH = 36


def with_content_uuid(content: bytes) -> bytes:
    """Return an MNN file with an identifier that depends on the rest of it alone.

    Raises:
        PassError: the file has none where the format has it.
    """
    start = _position(content)
    if start is None:
        raise PassError(
            "the file of MNN's converter has no identifier where its format has one",
            remedy="install the version of MNN that constraints.txt names",
        )
    rest = content[:start] + bytes(_LENGTH) + content[start + _LENGTH :]
    digest = hashlib.sha256(rest).digest()
    identifier = str(uuid.UUID(bytes=digest[:16], version=4)).encode()
    return content[:start] + identifier + content[start + _LENGTH :]


def _position(content: bytes) -> int | None:
    """Return where the identifier is: a text of the root table of the flatbuffer."""
    try:
        (table,) = struct.unpack_from("<I", content)
        (back,) = struct.unpack_from("<i", content, table)
        slots = table - back
        (size,) = struct.unpack_from("<H", content, slots)
        slot = 4 + 2 * _FIELD
        if slots < 0 or slot >= size:
            return None
        (offset,) = struct.unpack_from("<H", content, slots + slot)
        field = table + offset
        start = field + struct.unpack_from("<I", content, field)[0] + 4
    except struct.error:
        return None
    return start if offset and _UUID.fullmatch(content, start, start + _LENGTH) else None
