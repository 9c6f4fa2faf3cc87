/* SPDX-License-Identifier: Apache-2.0 */
#ifndef REUSEPORT_EXPORT_H
#define REUSEPORT_EXPORT_H

/* Marks what libreuseport.so shows; all else is built hidden. */
#define REUSEPORT_API __attribute__((visibility("default")))

#endif /* REUSEPORT_EXPORT_H */
