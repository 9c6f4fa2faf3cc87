/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the reuseport_listen_off* tests share.
 *
 * Functions which make a socket return it, or a negative errno.
 */
#ifndef REUSEPORT_LISTEN_OFF_H
#define REUSEPORT_LISTEN_OFF_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/reuseport.h>

#include "../kselftest.h"

/* The longest wait for something that must happen, debug kernels included.
 * $REUSEPORT_WAIT_MS is for runs in which many tests are to fail by waiting.
 */
#define WAIT_MS		wait_ms()
/* Enough for every member of a small group to be chosen at least once. */
#define NR_CLIENTS	64

/* How a client reaches a listener. */
struct path {
	const char *bind;	/* where the members listen */
	const char *any;	/* the wildcard address of their family */
	const char *specific;	/* their address when it must not be any */
	const char *dst;	/* where the clients connect */
};

enum { IPV4, IPV6, IPV4_ON_IPV6, NR_PATHS };

static const struct path paths[NR_PATHS] = {
	[IPV4] = {
		.bind = "127.0.0.1",
		.any = "0.0.0.0",
		.specific = "127.0.0.1",
		.dst = "127.0.0.1",
	},
	[IPV6] = {
		.bind = "::1",
		.any = "::",
		.specific = "::1",
		.dst = "::1",
	},
	[IPV4_ON_IPV6] = {
		.bind = "::",
		.any = "::",
		.specific = "::ffff:127.0.0.1",
		.dst = "127.0.0.1",
	},
};

union addr {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

static inline int wait_ms(void)
{
	const char *ms = getenv("REUSEPORT_WAIT_MS");

	return ms ? atoi(ms) : 10000;
}

static inline long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* Whether @cond comes true; looks every millisecond, gives up at WAIT_MS. */
#define wait_for(cond)							\
({									\
	long long __end = now_ms() + WAIT_MS;				\
	bool __ok;							\
									\
	while (!(__ok = (cond)) && now_ms() < __end)			\
		poll(NULL, 0, 1);					\
	__ok;								\
})

static inline socklen_t make_addr(union addr *a, const char *ip, int port)
{
	memset(a, 0, sizeof(*a));
	if (strchr(ip, ':')) {
		a->in6.sin6_family = AF_INET6;
		a->in6.sin6_port = htons(port);
		inet_pton(AF_INET6, ip, &a->in6.sin6_addr);
		return sizeof(a->in6);
	}
	a->in.sin_family = AF_INET;
	a->in.sin_port = htons(port);
	inet_pton(AF_INET, ip, &a->in.sin_addr);
	return sizeof(a->in);
}

static inline int family_of(const char *ip)
{
	return strchr(ip, ':') ? AF_INET6 : AF_INET;
}

static inline int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* Where the option is not the kernel's own, $REUSEPORT_ENABLE is the command
 * that provides it in the network namespace it runs in.
 */
static inline const char *enable_command(void)
{
	const char *command = getenv("REUSEPORT_ENABLE");

	return command && *command ? command : NULL;
}

static inline int enable_option(void)
{
	const char *command = enable_command();
	int status;

	if (!command)
		return 0;
	fflush(NULL);
	status = system(command);
	if (!status)
		return 0;
	ksft_print_msg("REUSEPORT_ENABLE: wait status %#x of: %s\n", status,
		       command);
	return -ENOPROTOOPT;
}

/* A network namespace of our own with nothing in it but lo, which is up. */
static inline int enter_netns(void)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd, ret = 0;

	if (unshare(CLONE_NEWNET))
		return -errno;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (ioctl(fd, SIOCSIFFLAGS, &ifr))
		ret = -errno;
	close(fd);
	return ret ? ret : enable_option();
}

static inline int set_int(int fd, int level, int opt, int val)
{
	return setsockopt(fd, level, opt, &val, sizeof(val)) ? -errno : 0;
}

static inline int set_mode(int fd, int mode)
{
	return set_int(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, mode);
}

static inline int get_mode(int fd)
{
	socklen_t len = sizeof(int);
	int mode;

	if (getsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &mode, &len))
		return -errno;
	return len == sizeof(int) ? mode : -EMSGSIZE;
}

/* All of it or, with every field UINT_MAX, an answer no test takes. */
static inline struct reuseport_listen_info get_info(int fd)
{
	struct reuseport_listen_info info;
	socklen_t len = sizeof(info);

	if (getsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &info, &len) ||
	    len != sizeof(info))
		memset(&info, 0xff, sizeof(info));
	return info;
}

static inline bool is_settled(int fd)
{
	struct reuseport_listen_info info = get_info(fd);

	return info.mode <= REUSEPORT_LISTEN_STANDBY &&
	       info.flags & REUSEPORT_LISTEN_F_SETTLED;
}

static inline bool is_drained(int fd)
{
	struct reuseport_listen_info info = get_info(fd);

	if (info.mode != REUSEPORT_LISTEN_OFF &&
	    (info.mode != REUSEPORT_LISTEN_STANDBY || !info.group_on))
		return false;
	return info.flags & REUSEPORT_LISTEN_F_SETTLED &&
	       !(info.flags & REUSEPORT_LISTEN_F_COOKIES) &&
	       !info.handshakes && !info.queued;
}

/* Wait for @n of them in the queue; how many there are in the end. */
static inline int wait_queued(int fd, int n)
{
	wait_for(get_info(fd).queued == n);
	return get_info(fd).queued;
}

static inline int local_port(int fd)
{
	socklen_t len = sizeof(union addr);
	union addr a;

	if (getsockname(fd, &a.sa, &len))
		return -errno;
	return ntohs(a.sa.sa_family == AF_INET6 ? a.in6.sin6_port :
						  a.in.sin_port);
}

/* A non-blocking SO_REUSEPORT socket, not bound. */
static inline int new_member_proto(const char *ip, int type, int proto)
{
	int fd, err;

	fd = socket(family_of(ip), type | SOCK_NONBLOCK | SOCK_CLOEXEC, proto);
	if (fd < 0)
		return -errno;
	err = set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

static inline int new_member(const char *ip, int type)
{
	return new_member_proto(ip, type, 0);
}

/* Bind and, if it takes connections, listen. */
static inline int join(int fd, const char *ip, int port)
{
	socklen_t typelen = sizeof(int), len;
	union addr a;
	int type;

	len = make_addr(&a, ip, port);
	if (bind(fd, &a.sa, len))
		return -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &typelen))
		return -errno;
	if (type == SOCK_STREAM && listen(fd, 4096))
		return -errno;
	return 0;
}

/* A member with mode @mode from its birth; @port 0 takes a free one. */
static inline int open_member_mode(const char *ip, int type, int port,
				   int mode)
{
	int fd, err;

	fd = new_member(ip, type);
	if (fd < 0)
		return fd;
	err = mode == REUSEPORT_LISTEN_ON ? 0 : set_mode(fd, mode);
	if (!err)
		err = join(fd, ip, port);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

/* Alone on a free port: SO_REUSEPORT is cleared after the mode was set, before
 * or after bind(), so that it never joins a group.
 */
static inline int open_cleared(const char *ip, int type, int mode,
			       bool after_bind)
{
	int fd = new_member(ip, type), err;
	socklen_t len;
	union addr a;

	if (fd < 0)
		return fd;
	len = make_addr(&a, ip, 0);
	err = set_mode(fd, mode);
	if (!err && after_bind && bind(fd, &a.sa, len))
		err = -errno;
	if (!err)
		err = set_int(fd, SOL_SOCKET, SO_REUSEPORT, 0);
	if (!err && !after_bind && bind(fd, &a.sa, len))
		err = -errno;
	if (!err && type == SOCK_STREAM && listen(fd, 16))
		err = -errno;
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

static inline int open_member(const char *ip, int type, int port)
{
	return open_member_mode(ip, type, port, REUSEPORT_LISTEN_ON);
}

static inline int socket_error(int fd)
{
	socklen_t len = sizeof(int);
	int err;

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len))
		return -errno;
	return -err;
}

/* Connect and wait for the outcome; the socket is left non-blocking. */
static inline int dial(const char *ip, int type, int port)
{
	struct pollfd pfd = { .events = POLLOUT };
	union addr a;
	socklen_t len;
	int fd, err;

	len = make_addr(&a, ip, port);
	fd = socket(family_of(ip), type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	err = connect(fd, &a.sa, len) ? -errno : 0;
	if (err == -EINPROGRESS) {
		pfd.fd = fd;
		err = poll(&pfd, 1, WAIT_MS) == 1 ? socket_error(fd) :
						    -ETIMEDOUT;
	}
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

/* Wait for a connection and accept it. */
static inline int take(int listener)
{
	struct pollfd pfd = { .fd = listener, .events = POLLIN };
	int fd;

	if (poll(&pfd, 1, WAIT_MS) != 1)
		return -ETIMEDOUT;
	fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Accept and close what is in the queue; how many there were. */
static inline int empty_queue(int listener)
{
	int fd, n = 0;

	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		close(fd);
		n++;
	}
	return errno == EAGAIN ? n : -errno;
}

/* Start one flow; which of the @n sockets got it, or a negative errno. */
static inline int who_gets(const struct path *path, int type, int port,
			   const int *fds, int n)
{
	struct pollfd pfd[n + 1];
	int client, i, ret = -ETIMEDOUT;
	char buf[16];

	client = dial(path->dst, type, port);
	if (client < 0)
		return client;
	if (type == SOCK_DGRAM && send(client, "datagram", 8, 0) != 8)
		ret = -errno;
	for (i = 0; i < n; i++)
		pfd[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
	pfd[n] = (struct pollfd){ .fd = client };
	if (poll(pfd, n + 1, WAIT_MS) <= 0)
		goto out;
	for (i = 0; i < n && !(pfd[i].revents & POLLIN); i++)
		;
	if (i == n) {
		ret = socket_error(client);
		goto out;
	}
	if (type == SOCK_DGRAM)
		ret = recv(fds[i], buf, sizeof(buf), 0) == 8 ? i : -errno;
	else
		ret = empty_queue(fds[i]) == 1 ? i : -EBUSY;
out:
	close(client);
	return ret;
}

/* Skip the whole program on a kernel without the option, and on no other:
 * whatever else is wrong is for the tests to find.
 */
static inline void require_option(void)
{
	int fd, mode;

	/* It will be there, or is missed. */
	if (enable_command())
		return;
	fd = new_member("127.0.0.1", SOCK_STREAM);
	mode = fd < 0 ? fd : get_mode(fd);
	if (fd >= 0)
		close(fd);
	if (mode != -ENOPROTOOPT)
		return;
	ksft_print_header();
	ksft_exit_skip("this kernel has no SO_REUSEPORT_LISTEN_OFF\n");
}

#endif /* REUSEPORT_LISTEN_OFF_H */
