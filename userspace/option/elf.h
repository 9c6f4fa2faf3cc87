/* SPDX-License-Identifier: Apache-2.0 */
#ifndef REUSEPORT_OPTION_ELF_H
#define REUSEPORT_OPTION_ELF_H

#include <stddef.h> /* NOLINT(modernize-deprecated-headers): C reads this, too */

#ifdef __cplusplus
extern "C" {
#endif

/* The object for groups of 4096, or else 512. */
const void* option_elf(int large, size_t* size);

#ifdef __cplusplus
}
#endif

#endif
