# SPDX-License-Identifier: Apache-2.0
# The C interface through ctypes: prints the probe's answer, checks an error.
import ctypes
import errno
import sys

lib = ctypes.CDLL(sys.argv[1])
lib.reuseport_support_name.restype = ctypes.c_char_p
lib.reuseport_version.restype = ctypes.c_char_p
why = ctypes.c_char_p()
support = lib.reuseport_probe(ctypes.byref(why))
assert why.value, "no reason given"
assert lib.reuseport_set_mode(-1, 1) == -errno.EBADF
assert lib.reuseport_version() == sys.argv[2].encode()
print(lib.reuseport_support_name(support).decode())
