# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154
# Sourced by kernel and kernel-deb: selects the source (KVER, FLAVOR, ARCH and KSRC in the
# environment) and prepares it. `me` is the script's name, `here` this directory. Sets kver, flavor,
# ksrc, series (a directory, or empty), fragments, and what ./machine.sh sets.
top=${here%/*}
# shellcheck source=machine.sh
. "$here/machine.sh"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/reuseport
die() {
	step_end
	echo "$me: $*" >&2
	exit 1
}
progress=''
if [ -t 2 ] || [ "${PROGRESS-}" = always ]; then progress=y; fi
step() { [ -z "$progress" ] || printf '\r\033[K%.100s' "$me: $*" >&2; }
step_end() { [ -z "$progress" ] || printf '\r\033[K' >&2; }

flavor=${FLAVOR:-patched} ksrc=${KSRC:-} kver=${KVER:-}
if [ -n "$ksrc" ]; then
	release=$(sed -nE 's/^(VERSION|PATCHLEVEL) = //p' "$ksrc/Makefile" 2>/dev/null | paste -sd.) || :
	{ [ -n "$release" ] && [ -f "$ksrc/Kbuild" ] && [ -d "$ksrc/arch/x86" ]; } ||
		die "KSRC=$ksrc is not a kernel tree"
	ksrc=$(realpath "$ksrc")
	if [ -z "$kver" ]; then
		case $release in
		6.1 | 6.12) kver=$release ;;
		*) kver=mainline ;;
		esac
	fi
fi
kver=${kver:-6.1}
case $kver in
6.1 | 6.12 | mainline) ;;
*) die "unknown kernel line KVER='$kver': 6.1, 6.12 or mainline" ;;
esac
fragments=(base net namespaces bpf testing) series=$top/kernel-patches/$kver
case $flavor in
stock) series='' ;;
patched) ;;
debug | kcsan | btf | gcov | ia32) fragments+=("$flavor") ;;
debian) fragments=() series='' ;;
*) die "unknown FLAVOR='$flavor': patched, stock, debug, kcsan, btf, gcov, ia32 or debian" ;;
esac
[ -n "$arch" ] || die "unknown ARCH='${ARCH-}': x86_64, i386, arm64 or s390x"
[ "$arch" = x86_64 ] || case $flavor in
debian | gcov | ia32) die "FLAVOR=$flavor is for x86_64 only, not for ARCH=$arch" ;;
*) fragments+=("$arch") ;;
esac
fragments=("${fragments[@]/#/$here/config/}")
fragments=("${fragments[@]/%/.config}")
[ -z "$series" ] || [ -f "$series/series" ] ||
	die "no patches for KVER=$kver: kernel-patches/$kver/series does not exist"
[ -d "$cache" ] || mkdir -p "$cache" 2>/dev/null || die "cannot make the cache $cache"
[ -w "$cache" ] || die "cannot write in the cache $cache"

# Makes the build directory $1, which is removed when the script ends, whatever ends it. First
# removes what killed builds have left: directories whose lock is free.
child=''
make_tmp() {
	local old free
	tmp=$1 log=$1/log tree=$1/linux
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	trap 'exit 129' HUP
	for old in "$tmp" "$cache"/tmp.{6.1,6.12,mainline}-*; do
		[ "$old" = "$tmp" ] || flock -n "$cache/lock/${old##*/tmp.}" true || continue
		rm -rf "$old"
	done
	free=$(df --output=avail -BM "$cache" | tail -n 1 | tr -dc 0-9)
	[ "$free" -ge 3000 ] || die "no space: a build needs 3000 MB in $cache, there are $free"
	mkdir "$tmp" "$tree"
}
# shellcheck disable=SC2317 # called by the trap
cleanup() {
	if [ -n "$child" ]; then
		kill -TERM -- "-$child" 2>/dev/null || :
		wait "$child" || :
	fi
	rm -rf "$tmp"
}

# run DOING COMMAND…: output goes to the log, shown only by failed. Runs in its own session and in
# the background, because a shell handles no signal while it waits in the foreground.
run() {
	local doing=$1 rc=0
	shift
	setsid "$@" >>"$log" 2>&1 &
	child=$!
	while [ -n "$progress" ] && kill -0 $child 2>/dev/null; do
		sleep 0.5
		step "$kver $flavor: $doing, $SECONDS s$(tail -n 1 "$log" | sed -nE 's/^  (CC|AS|AR|LD) +/, /p')"
	done
	wait $child || rc=$?
	child=''
	return $rc
}
failed() {
	step_end
	tail -n 40 "$log" >&2
	die "$1"
}

# Unpacks the source into $tree and patches it if requested.
make_tree() {
	if [ -n "$ksrc" ]; then
		run copying rsync -a --exclude=.git "$ksrc/" "$tree/" || failed "cannot copy $ksrc (no space?)"
		[ ! -e "$tree/.config" ] || run cleaning make -s -C "$tree" mrproper || failed 'make mrproper failed'
	else
		run unpacking tar -xJf "$source/linux.tar.xz" -C "$tree" --strip-components=1 ||
			failed "cannot unpack ${source##*/} (no space, or damaged: qemu-ci/fetch --refresh $kver)"
	fi
	[ -z "$series" ] || "$top/kernel-patches/apply" "$series" "$tree" || { step_end; exit 1; }
}

# kmake DOING ARGUMENT…: make in $tree. With ccache the second flavour of a line compiles only
# what the patches touch.
kmake() {
	local doing=$1 cc=${CC:-${cross}gcc}
	shift
	if command -v ccache >/dev/null; then
		cc="ccache $cc"
		export CCACHE_DIR="$cache/ccache" CCACHE_MAXSIZE=3G CCACHE_BASEDIR="$tmp" CCACHE_NOHASHDIR=y
		export CCACHE_NOCPP2=y # preprocess once, not twice: a fifth of a build that finds nothing in it
	fi
	unset MAKEFLAGS MFLAGS MAKELEVEL # what called us may be `make -s`
	export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=reuseport KBUILD_BUILD_HOST=ci
	run "$doing" make -C "$tree" ${karch:+ARCH="$karch"} ${cross:+CROSS_COMPILE="$cross"} CC="$cc" \
		-j"${JOBS:-$(nproc)}" "$@"
}
