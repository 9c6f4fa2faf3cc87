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
    "package": lambda **keywords: None,
    "glob": lambda patterns: sorted(sum((glob.glob(p) for p in patterns), [])),
    "cc_library": lambda **keywords: libraries.append(keywords),
})
by_name = {lib["name"]: lib for lib in libraries}
lib = by_name["reuseport"]
sources = {os.path.basename(s) for s in lib["srcs"] if s.endswith(".cpp")}
assert sources == {s for s in os.listdir("userspace/core") if s.endswith(".cpp")}
options = []
for each in [lib] + [by_name[d.lstrip(":")] for d in lib["deps"]]:
    for name in each.get("srcs", []) + each["hdrs"]:
        prefix = each.get("strip_include_prefix", "")
        to = each.get("include_prefix", "") + name[len(prefix):] if prefix else name
        os.makedirs(os.path.join(work, os.path.dirname(to)), exist_ok=True)
        shutil.copy(name, os.path.join(work, to))
    options += ["-I" + i for i in each.get("includes", [])]

version = re.search(r"VERSION ([0-9.]+)", open("userspace/CMakeLists.txt").read()
                    .split("project(")[1]).group(1)
defines = [d.replace('\\"', '"') for d in lib["local_defines"]]
assert f'REUSEPORT_VERSION="{version}"' in defines, defines
assert f'version = "{version}"' in open("MODULE.bazel").read()

options += ["-I."] + lib["copts"] + ["-D" + d for d in defines]
for source in [s for s in lib["srcs"] if s.endswith(".cpp")]:
    subprocess.run([cxx, "-fsyntax-only", *options, source], cwd=work, check=True)
print(os.environ.get("REUSEPORT_EXPECT", "not_in_kernel"))
