// SPDX-License-Identifier: Apache-2.0
#include <sys/time.h>

#include "network_helpers.h"

int failures, subtests;
void serial_test_migrate_reuseport(void);

int make_sockaddr(int family, const char* ip, __u16 port, struct sockaddr_storage* address,
                  socklen_t* length) {
  struct sockaddr_in* v4 = (struct sockaddr_in*)address;
  struct sockaddr_in6* v6 = (struct sockaddr_in6*)address;

  memset(address, 0, sizeof(*address));
  address->ss_family = family;
  if (family == AF_INET) {
    v4->sin_port = htons(port);
    *length = sizeof(*v4);
    return inet_pton(family, ip, &v4->sin_addr) == 1 ? 0 : -1;
  }
  v6->sin6_port = htons(port);
  *length = sizeof(*v6);
  return inet_pton(family, ip, &v6->sin6_addr) == 1 ? 0 : -1;
}

int settimeo(int fd, int ms) {
  const struct timeval limit = {.tv_sec = ms > 0 ? ms / 1000 : 3, .tv_usec = ms % 1000 * 1000};

  return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
                 setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit))
             ? -1
             : 0;
}

int main(void) {
  serial_test_migrate_reuseport();
  fprintf(stderr, "%d subtests, %d assertions failed\n", subtests, failures);
  return failures || !subtests;
}
