# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034,SC2154 # suite is theirs, and passed and failed; apt is for them
# Sourced by check-deb and check-bazel, at the top of the checkout: bare Debian systems, and commands in them.
# They keep what debootstrap made in $cache, and work in $work, which goes when they end.
[ "$(id -u)" = 0 ] || { echo "${0##*/}: makes chroots and namespaces; run it as root" >&2; exit 1; }
qemu-ci/install debootstrap debian-archive-keyring git procps util-linux xz-utils || exit 1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/reuseport/chroot
mkdir -p "$cache" || exit 1
# On a disk: a system takes half a gigabyte, one that builds two.
work=$(mktemp -d "$cache/tmp.XXXXXX") || exit 1

step() { # step NAME COMMAND…: counted; what it printed is shown where it failed
	local name=$1
	shift
	if "$@" >"$work/log" 2>&1 </dev/null; then
		passed=$((passed + 1))
		echo "ok $suite: $name"
	else
		failed=$((failed + 1))
		echo "FAILED $suite: $name"
		tail -n 60 "$work/log" | sed 's/^/  | /'
		return 1
	fi
}
bare() { # bare DIR: makes $suite there, as debootstrap does, and no more
	local from
	from=$(qemu-ci/archive) || return 1
	debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg "$suite" "$1" "$from"
}
prepare() { # prepare DIR: apt works there, and starts nothing while it installs packages
	cp /etc/resolv.conf "$1/etc/resolv.conf" || return 1
	# A proxy that this machine's apt asks is asked there, too.
	apt-config dump | grep -iE '^Acquire::(http|https)::Proxy ' >"$1/etc/apt/apt.conf.d/99proxy"
	printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d"
}
in_chroot() { # in_chroot DIR COMMAND…: with /proc and /dev, in namespaces that go with it
	# shellcheck disable=SC2016 # expanded there
	unshare --mount --pid --fork --kill-child --ipc --uts bash -c '
		mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/run" || exit
		root=$1
		shift
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"' sh "$@"
}
apt=(apt-get -q -y --no-install-recommends -o DPkg::Options::=--force-unsafe-io)
