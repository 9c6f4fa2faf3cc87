/* SPDX-License-Identifier: Apache-2.0 */
/* The objects out of their skeletons, which are C. */
#include "elf.h"

#include <linux/types.h>

#include "table.h"

typedef __u32 u32;

#include "option_4096.skel.h"
#include "option_512.skel.h"

const void* option_elf(int large, size_t* size) {
  return large ? option_4096__elf_bytes(size) : option_512__elf_bytes(size);
}
