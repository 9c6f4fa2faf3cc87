/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include "test_progs.h"

/* A numeric address and a port; 0, or -1 for what is no address of @family. */
int make_sockaddr(int family, const char* ip, __u16 port, struct sockaddr_storage* address,
                  socklen_t* length);

/* A limit in milliseconds for what receives and sends on @fd, 3 seconds where it is 0. */
int settimeo(int fd, int ms);
