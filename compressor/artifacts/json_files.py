"""Old place of ``compressor.foreign_files.json_files``."""

from compressor.foreign_files.json_files import read_json_object, read_json_record

__all__ = ["read_json_object", "read_json_record"]
