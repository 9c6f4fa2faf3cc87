# SPDX-License-Identifier: Apache-2.0
"""Builds what BUILD.bazel says, without Bazel, which Debian lacks in a current version.

usage: bazel.py REPOSITORY CXX WORKDIR. Reads the one cc_library (the file is valid Python), compiles
c_api.cpp, which includes the most, with its options in a copy that holds nothing but the
files it names, and checks that the version is that of CMakeLists.txt.
"""
import glob
import os
import re
import shutil
import subprocess
import sys

repository, cxx, work = sys.argv[1:]
libraries = []
os.chdir(repository)
exec(open("BUILD.bazel").read(), {
    "load": lambda *args: None,
    "glob": lambda patterns: sorted(sum((glob.glob(p) for p in patterns), [])),
    "cc_library": lambda **keywords: libraries.append(keywords),
})
assert len(libraries) == 1, "one cc_library"
lib = libraries[0]
sources = {os.path.basename(s) for s in lib["srcs"] if s.endswith(".cpp")}
folders = ["userspace/src", "userspace/ctl/host"]
assert sources == {s for f in folders for s in os.listdir(f) if s.endswith(".cpp")}
for name in lib["srcs"] + lib["hdrs"]:
    os.makedirs(os.path.join(work, os.path.dirname(name)), exist_ok=True)
    shutil.copy(name, os.path.join(work, name))

version = re.search(r"VERSION ([0-9.]+)", open("userspace/CMakeLists.txt").read()
                    .split("project(")[1]).group(1)
defines = [d.replace('\\"', '"') for d in lib["local_defines"]]
assert f'REUSEPORT_VERSION="{version}"' in defines, defines
assert f'version = "{version}"' in open("MODULE.bazel").read()

options = lib["copts"] + ["-I" + i for i in lib["includes"]] + ["-D" + d for d in defines]
for source in [s for s in lib["srcs"] if s.endswith("/c_api.cpp")]:
    subprocess.run([cxx, "-fsyntax-only", *options, source], cwd=work, check=True)
print(os.environ.get("REUSEPORT_EXPECT", "not_in_kernel"))
