"""The only way into files that others wrote: models, data, configs, archives, signatures and keys.

``opening`` admits regular files alone and reads at most the bytes that ``limits`` names for their
kind, ``json_files`` bounds the number and the nesting of values, ``libraries`` turns exceptions of
libraries into errors that name the file, and ``printable`` escapes what a terminal would obey.
"""
