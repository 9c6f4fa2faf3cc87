# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh disable=SC2034
# Sourced: what a machine is. From ARCH (default x86_64) sets arch; empty: unknown. And of it
#   cross  the prefix of its compiler and binutils; none: this machine's
#   karch  what the kernel's make calls it; none: as it finds out by itself
#   boot   the image that is booted, in a kernel tree
arch=${ARCH:-x86_64} cross='' karch='' boot=arch/x86/boot/bzImage
case $arch in
x86_64 | x86) arch=x86_64 ;;
i386) cross=i686-linux-gnu- karch=i386 ;;
arm64) cross=aarch64-linux-gnu- karch=arm64 boot=arch/arm64/boot/Image ;;
s390x) cross=s390x-linux-gnu- karch=s390 boot=arch/s390/boot/bzImage ;;
*) arch='' ;;
esac
