# SPDX-License-Identifier: Apache-2.0
# Only dispatches; see each folder's README.

PREFIX  ?= /usr/local
KVER    ?=
FLAVOR  ?= patched
KSRC    ?=
export KVER FLAVOR KSRC

.PHONY: help demo check kernel kernel-deb userspace selftests lab million scenarios soak install deb dist check-deb check-bazel clean

help:
	@echo 'make demo        restart a server under load, with close and with drain, on this kernel'
	@echo '                 and on a patched one in a virtual machine'
	@echo 'make check       every test; last line: N passed, N failed, N skipped'
	@echo 'make kernel      build a kernel, print its image: KVER=6.1|6.12|mainline'
	@echo '                 FLAVOR=patched|stock|debug|kcsan|btf|gcov|ia32|debian, KSRC=DIR for a tree of your own'
	@echo 'make kernel-deb  Debian packages of a patched kernel: KVER or KSRC, CONFIG=FILE'
	@echo 'make userspace   build/bin/{reuseportctl,restart-lab}, build/lib/libreuseport.{a,so}'
	@echo 'make selftests   the kselftests'
	@echo 'make lab         the restart lab: methods compared under load, on this kernel or with'
	@echo '                 KVER= on a patched one: LAB_FLAGS='
	@echo 'make million     1,000,000 connections and 1,000 restarts on a patched kernel'
	@echo 'make scenarios   real servers restarted under load, with faults: SCENARIOS_FLAGS=--short'
	@echo 'make soak        restarts, churn and faults on a debug kernel, until the first loss: HOURS=1'
	@echo 'make install     library, tools, header, man pages into PREFIX=$(PREFIX) (DESTDIR works)'
	@echo 'make deb         Debian packages, into build/deb; see packaging/README.md'
	@echo 'make check-deb   the packages, built, installed and purged in bare systems'
	@echo 'make check-bazel built by Bazel, in a chroot'
	@echo 'make dist        the release archive, into build/dist'
	@echo 'make clean       remove build/, but not the cache of kernels (see qemu-ci/README.md)'

demo check kernel kernel-deb:
	@$(MAKE) --no-print-directory -C qemu-ci $@

userspace:
	@$(MAKE) --no-print-directory -C userspace

selftests:
	@qemu-ci/deps selftests
	@$(MAKE) --no-print-directory -C selftests

lab million soak scenarios install:
	@$(MAKE) --no-print-directory -C userspace $@ PREFIX='$(PREFIX)'

deb dist check-deb check-bazel:
	@packaging/$@

clean:
	rm -rf build
	@$(MAKE) --no-print-directory -C selftests clean
