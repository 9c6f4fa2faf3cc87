// SPDX-License-Identifier: Apache-2.0
/*
 * Process 1 of the virtual machine. Read main() top to bottom: it makes the
 * host's file system usable, runs one command in it, and reports the result on
 * the second serial port, or on the virtio port "verdict" of a machine that has
 * none. The host accepts only a last line "exit N KEY" there, so that line is
 * written after everything that can still go wrong. KEY is random and is in the
 * first line, written before the command runs: anything else that reaches the
 * port is not a verdict.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define HOST "/host"	/* where the host's file system is while we set up */

static int verdict_fd = -1;

/* One line on the second serial port. */
static void say(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	for (int done = 0, r; done < n; done += r) {
		r = write(verdict_fd, line + done, n - done);
		if (r <= 0)
			break;
	}
	tcdrain(verdict_fd);
}

/* Without ACPI there is no power-off; QEMU runs with -no-reboot and exits. */
static _Noreturn void leave(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static _Noreturn void fail(const char *what)
{
	say("fail %s: %s", what, strerror(errno));
	leave();
}

static void mount_or_fail(const char *dev, const char *dir, const char *type,
			  unsigned long flags, const char *opts)
{
	if (mount(dev, dir, type, flags, opts))
		fail(dir);
}

/* Optional mounts: a kernel may be built without them. */
static void mount_if_known(const char *type, const char *dir)
{
	if (mount(type, dir, type, 0, NULL) && errno != ENODEV &&
	    errno != ENOENT && errno != EBUSY)
		fail(dir);
}

static void make_dir(const char *dir)
{
	if (mkdir(dir, 0755) && errno != EEXIST)
		fail(dir);
}

/* The virtio-serial port of that name, or -1. */
static int find_port(const char *want)
{
	char path[PATH_MAX], name[64];
	struct dirent *e;
	int fd = -1;
	DIR *d;

	d = opendir("/sys/class/virtio-ports");
	while (fd < 0 && d && (e = readdir(d))) {
		FILE *f;

		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name",
			 e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%63s", name) == 1 && !strcmp(name, want)) {
			snprintf(path, sizeof(path), "/dev/%s", e->d_name);
			fd = open(path, O_WRONLY | O_CLOEXEC);
		}
		fclose(f);
	}
	if (d)
		closedir(d);
	return fd;
}

/* The kernel names ports some time after it found the device: up to 30 s here. */
static int open_port(const char *want)
{
	int fd;

	for (int i = 0; i < 6000; i++) {
		fd = find_port(want);
		if (fd >= 0)
			return fd;
		usleep(5000);
	}
	errno = ENODEV;
	fail(want);
}

static void open_verdict(void)
{
	struct termios t;

	verdict_fd = open("/dev/ttyS1", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	if (verdict_fd < 0 && errno == ENOENT) {
		/* No PC: virtio names its ports in /sys. */
		mkdir("/sys", 0755);
		if (!mount("sysfs", "/sys", "sysfs", 0, NULL)) {
			verdict_fd = open_port("verdict");
			umount("/sys");
		}
	}
	if (verdict_fd < 0)
		leave();
	if (!tcgetattr(verdict_fd, &t)) {
		cfmakeraw(&t);
		tcsetattr(verdict_fd, TCSANOW, &t);
	}
}

/*
 * A distribution's kernel comes with modules: /modules/list names them, each
 * before those that need it.
 */
static void load_modules(void)
{
	FILE *list = fopen("/modules/list", "re");
	char path[PATH_MAX];
	int fd;

	while (list && fgets(path, sizeof(path), list)) {
		path[strcspn(path, "\n")] = 0;
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			fail(path);
		close(fd);
		unlink(path);
	}
	if (list)
		fclose(list);
}

/* The host's tree, read-only; /tmp is a writable view of the host's. */
static void mount_host(void)
{
	make_dir(HOST);
	mount_or_fail("host", HOST, "9p", MS_RDONLY,
		      "trans=virtio,version=9p2000.L,msize=512000,cache=loose");
	make_dir("/over");
	mount_or_fail("tmpfs", "/over", "tmpfs", 0, "mode=0755");
	make_dir("/over/upper");
	make_dir("/over/work");
	chmod("/over/upper", 01777);
	mount_or_fail("overlay", HOST "/tmp", "overlay", 0,
		      "lowerdir=" HOST "/tmp,upperdir=/over/upper,workdir=/over/work");
	mount_or_fail("tmpfs", HOST "/run", "tmpfs", 0, "mode=0755");
	make_dir(HOST "/run/lock");
	mount_or_fail("proc", HOST "/proc", "proc", 0, NULL);
	mount_or_fail("sysfs", HOST "/sys", "sysfs", 0, NULL);
	mount_or_fail("dev", HOST "/dev", "devtmpfs", 0, NULL);
	make_dir(HOST "/dev/pts");
	mount_or_fail("devpts", HOST "/dev/pts", "devpts", 0,
		      "mode=0620,ptmxmode=0666");
	make_dir(HOST "/dev/shm");
	mount_or_fail("tmpfs", HOST "/dev/shm", "tmpfs", 0, "mode=1777");
	mount_if_known("cgroup2", HOST "/sys/fs/cgroup");
	mount_if_known("bpf", HOST "/sys/fs/bpf");
	mount_if_known("debugfs", HOST "/sys/kernel/debug");
	mount_if_known("tracefs", HOST "/sys/kernel/tracing");
	(void)!symlink("/proc/self/fd", HOST "/dev/fd");
	(void)!symlink("/proc/self/fd/0", HOST "/dev/stdin");
	(void)!symlink("/proc/self/fd/1", HOST "/dev/stdout");
	(void)!symlink("/proc/self/fd/2", HOST "/dev/stderr");
}

/* Moved, not only chrooted: a chrooted process may not make a user namespace. */
static void enter_host(void)
{
	if (chdir(HOST) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
		fail("enter the host's file system");
}

static void loopback_up(void)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &ifr))
		fail("lo up");
	close(fd);
}

/* A whole file with a terminating NUL, and its size without it. */
static char *slurp(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t room = 4096, used = 0;
	char *buf = malloc(room);
	ssize_t r;

	if (fd < 0 || !buf)
		fail(path);
	while ((r = read(fd, buf + used, room - used - 1)) > 0) {
		used += r;
		if (room - used < 2048 && !(buf = realloc(buf, room *= 2)))
			fail(path);
	}
	if (r < 0)
		fail(path);
	close(fd);
	buf[used] = 0;
	*size = used;
	return buf;
}

/* A file of strings that each end in NUL, as an argv. */
static char **strings(const char *dir, const char *name)
{
	size_t size, n = 0, room = 1;
	char path[512], *buf, **list;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	buf = slurp(path, &size);
	for (size_t i = 0; i < size; i++)
		room += !buf[i];
	list = calloc(room, sizeof(*list));
	if (!list)
		fail(name);
	for (char *p = buf; p < buf + size; p += strlen(p) + 1)
		list[n++] = p;
	return list;
}

static pid_t start(char **argv, char **envp, const char *cwd, int out, int err)
{
	pid_t pid = fork();
	int null;

	if (pid)
		return pid;
	null = open("/dev/null", O_RDONLY);
	setsid();
	dup2(null, 0);
	dup2(out, 1);
	dup2(err, 2);
	if (null > 2)
		close(null);
	signal(SIGPIPE, SIG_DFL);
	if (chdir(cwd)) {
		dprintf(2, "vm: %s: %s\n", cwd, strerror(errno));
		_exit(126);
	}
	environ = envp;
	if (!getenv("PATH"))
		setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:"
			       "/usr/bin:/sbin:/bin", 1);
	execvp(argv[0], argv);
	dprintf(2, "vm: %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/*
 * Moves what a pipe holds to a port; false once the pipe has ended. The host is
 * told before the first of it leaves: until then it may start anew.
 */
static int pump(int from, int to)
{
	char buf[32768];
	ssize_t n = read(from, buf, sizeof(buf));
	static int told;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n && !told++)
		say("output");
	for (ssize_t done = 0, w; done < n; done += w) {
		w = write(to, buf + done, n - done);
		if (w <= 0)
			fail("write output");
	}
	return n > 0;
}

/*
 * The command writes to pipes, not to the ports, because a port cannot be
 * opened twice: "> /dev/stderr" in a script would fail. Children the command
 * leaves behind are killed when it ends.
 */
static int run(char **argv, char **envp, const char *cwd)
{
	int to[2] = { open_port("out"), open_port("err") };
	struct pollfd from[2];
	int status = 0, ended = 0;
	pid_t pid, got;
	int p[2][2];

	for (int i = 0; i < 2; i++) {
		if (pipe2(p[i], O_CLOEXEC))
			fail("pipe");
		fcntl(p[i][0], F_SETFL, O_NONBLOCK);
		from[i] = (struct pollfd){ p[i][0], POLLIN, 0 };
	}
	pid = start(argv, envp, cwd, p[0][1], p[1][1]);
	if (pid < 0)
		fail("fork");
	close(p[0][1]);
	close(p[1][1]);
	for (;;) {
		/* Check before the poll: then its output is in the pipe. */
		while ((got = waitpid(-1, &status, WNOHANG)) > 0 && got != pid)
			;
		ended = got == pid;
		if (ended)
			kill(-1, SIGKILL);
		while (poll(from, 2, ended ? 0 : 20) > 0) {
			for (int i = 0; i < 2; i++)
				if (from[i].revents && !pump(from[i].fd, to[i]))
					from[i].fd = -1;
			if (!ended)
				break;
		}
		if (ended)
			break;
	}
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) :
				     WEXITSTATUS(status);
}

static void reap_the_rest(void)
{
	while (wait(NULL) > 0 || errno == EINTR)
		;
}

/*
 * kmemleak reports an object once it is five seconds old, so scan twice. An
 * object without a pointer may just be moving, or waiting for RCU to free it
 * (Documentation/dev-tools/kmemleak.rst): that is only a suspicion. A leaked
 * object stays in the report, scan after scan.
 */
static void check_leaks(void)
{
	static const char file[] = "/sys/kernel/debug/kmemleak";
	int fd = open(file, O_RDWR | O_CLOEXEC), con;
	char *report = NULL;
	size_t size = 1;

	if (fd < 0)
		return;
	for (int i = 0; i < 8 && (i < 2 || size); i++) {
		sleep(6);
		if (write(fd, "scan", 4) != 4)
			fail("kmemleak: scan (is it off?)");
		free(report);
		report = slurp(file, &size);
	}
	close(fd);
	if (!size)
		return;
	con = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	(void)!write(con, report, size);
	say("fail kmemleak: %.100s", report);
	leave();
}

/* Whatever the console shows: a kernel that complained is tainted. */
static void check_taint(void)
{
	size_t size;
	char *taint = slurp("/proc/sys/kernel/tainted", &size);

	taint[strcspn(taint, "\n")] = 0;
	if (!strcmp(taint, "0"))
		return;
	say("fail kernel tainted: %s", taint);
	leave();
}

int main(void)
{
	const char *job = getenv("VM_JOB");
	char **argv, **envp, **cwd;
	char dir[256];
	unsigned long long key = 0;
	int code;

	signal(SIGPIPE, SIG_IGN);
	make_dir("/dev");
	if (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY)
		leave();
	/* Without a console node 0, 1 and 2 would not be open. */
	while (open("/dev/null", O_RDWR | O_CLOEXEC) < 2)
		;
	open_verdict();
	/* It need not be secret, only unlikely to be written by chance: do not wait for entropy. */
	(void)!getrandom(&key, sizeof(key), GRND_INSECURE);
	say("boot %016llx", key);
	load_modules();
	mount_host();

	/* Read before entering, where /tmp may hide it. */
	snprintf(dir, sizeof(dir), HOST "%s", job ? job : "");
	argv = strings(dir, "argv");
	envp = strings(dir, "env");
	cwd = strings(dir, "cwd");
	if (!argv[0] || !cwd[0])
		fail("job");

	enter_host();
	loopback_up();
	(void)!sethostname("vm", 2);
	code = run(argv, envp, cwd[0]);
	say("end");

	reap_the_rest();
	check_leaks();
	check_taint();
	say("exit %d %016llx", code, key);
	leave();
}
