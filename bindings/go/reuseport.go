// SPDX-License-Identifier: Apache-2.0

// Package reuseport retires SO_REUSEPORT listeners without losing connections: libreuseport for Go.
//
// A single file to copy. It calls the C library through cgo, found by CGO_ENABLED=1 and pkg-config. libreuseport needs
// only libc, so it can be linked statically: PKG_CONFIG="pkg-config --static" with libreuseport.a instead of the shared
// library. The names are those of <reuseport/reuseport.h>; libreuseport(3) explains them.
//
//	listener, err := reuseport.Listen(ctx, "tcp", ":8080")
//	go server.Serve(listener)
//	...
//	report, err := reuseport.Retire(ctx, reuseport.Options{}, listener)
//
// Use a Drain from one goroutine at a time; others may go on accepting. Errors are *Error: which call failed, its
// errno and how to fix it.
//
// Go 1.24 and later listen with MPTCP by default, which the option by BPF does not support (EOPNOTSUPP): set
// GODEBUG=multipathtcp=0, or call SetMultipathTCP(false) on your net.ListenConfig.
package reuseport

/*
#cgo pkg-config: libreuseport
#include <stdlib.h>
#include <sys/socket.h>
#include <reuseport/reuseport.h>

int reuseportGoIsShared(int fd, void *user);
void reuseportGoClose(int fd, void *user);
*/
import "C"

import (
	"context"
	"errors"
	"net"
	"runtime/cgo"
	"syscall"
	"time"
	"unsafe"
)

// Error says which call failed, its errno, and how to fix it (may be empty).
type Error struct {
	Errno syscall.Errno
	Call  string
	Hint  string
}

func (e *Error) Error() string {
	text := e.Call + ": " + e.Errno.Error()
	if e.Hint != "" {
		text += ": " + e.Hint
	}
	return text
}

// Unwrap returns the errno, for errors.Is.
func (e *Error) Unwrap() error { return e.Errno }

// Version returns the version of the library in use, such as "1.0.0".
func Version() string { return C.GoString(C.reuseport_version()) }

// Hint says how to fix an errno of GetInfo or SetMode, or "".
func Hint(errno syscall.Errno) string { return C.GoString(C.reuseport_hint(C.int(errno))) }

// ---- Is the option available? ----

// Support is what a probe found.
type Support uint32

const (
	ProbeError     Support = C.REUSEPORT_PROBE_ERROR
	Supported      Support = C.REUSEPORT_SUPPORTED
	SupportedByBPF Support = C.REUSEPORT_SUPPORTED_BY_BPF
	NotInKernel    Support = C.REUSEPORT_NOT_IN_KERNEL
	NumberTaken    Support = C.REUSEPORT_NUMBER_TAKEN
	Blocked        Support = C.REUSEPORT_BLOCKED
)

func (s Support) String() string { return C.GoString(C.reuseport_support_name(C.uint32_t(s))) }

// OK reports whether the option is available, by the kernel or by BPF.
func (s Support) OK() bool { return s == Supported || s == SupportedByBPF }

// Probe queries this kernel, once per process, and explains the result.
func Probe() (Support, string) {
	var why *C.char
	support := C.reuseport_probe(&why)
	return Support(support), C.GoString(why)
}

// ProbeBehaviour is Probe with a test of the option by connections over loopback; not cached.
func ProbeBehaviour(connects int) (Support, string) {
	var why *C.char
	support := C.reuseport_probe_behaviour(C.int(connects), &why)
	return Support(support), C.GoString(why)
}

// ---- One listener ----

// Mode says whether a listener gets new connections or datagrams.
type Mode uint32

const (
	On      Mode = C.REUSEPORT_LISTEN_ON
	Off     Mode = C.REUSEPORT_LISTEN_OFF
	Standby Mode = C.REUSEPORT_LISTEN_STANDBY
)

// Info is struct reuseport_listen_info.
type Info struct {
	Mode                                     Mode
	Flags, Handshakes, Queued                uint32
	GroupID, GroupOn, GroupStandby, GroupOff uint32
}

func (i Info) Settled() bool { return i.Flags&C.REUSEPORT_LISTEN_F_SETTLED != 0 }
func (i Info) Cookies() bool { return i.Flags&C.REUSEPORT_LISTEN_F_COOKIES != 0 }
func (i Info) ByBPF() bool   { return i.Flags&C.REUSEPORT_LISTEN_F_BPF != 0 }

// Drained reports whether close() would lose nothing ("drained" in <linux/reuseport.h>).
func (i Info) Drained() bool {
	raw := (*C.struct_reuseport_listen_info)(unsafe.Pointer(&i))
	return C.reuseport_drained(raw) == 1
}

func failed(result C.int, call string) error {
	if result >= 0 {
		return nil
	}
	return &Error{syscall.Errno(-result), call, C.GoString(C.reuseport_hint(result))}
}

// GetInfo is getsockopt(SO_REUSEPORT_LISTEN_OFF) of a descriptor.
func GetInfo(fd int) (info Info, err error) {
	raw := (*C.struct_reuseport_listen_info)(unsafe.Pointer(&info))
	err = failed(C.reuseport_get_info(C.int(fd), raw), "getsockopt(SO_REUSEPORT_LISTEN_OFF)")
	return
}

// SetMode is setsockopt(SO_REUSEPORT_LISTEN_OFF) of a descriptor.
func SetMode(fd int, mode Mode) error {
	return failed(C.reuseport_set_mode(C.int(fd), C.int(mode)), "setsockopt(SO_REUSEPORT_LISTEN_OFF)")
}

// Listener is what a drain takes, such as *net.TCPListener and *net.UDPConn.
type Listener interface {
	syscall.Conn
	Close() error
}

// FD returns the descriptor of a listener, valid while it is open. Unlike File().Fd() it does not change the socket.
func FD(listener syscall.Conn) (fd int, err error) {
	fd = -1
	conn, err := listener.SyscallConn()
	if err == nil {
		err = conn.Control(func(number uintptr) { fd = int(number) })
	}
	return
}

// Config is a net.ListenConfig that sets SO_REUSEPORT before bind.
func Config() net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		if broken := conn.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), C.SOL_SOCKET, C.SO_REUSEPORT, 1)
		}); broken != nil {
			return broken
		}
		return err
	}}
}

// Listen is net.Listen for TCP with SO_REUSEPORT.
func Listen(ctx context.Context, network, address string) (*net.TCPListener, error) {
	config := Config()
	listener, err := config.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		listener.Close()
		return nil, net.UnknownNetworkError(network)
	}
	return tcp, nil
}

// ---- The drain ----

// Policy says what a drain may do if the option is not available.
type Policy uint32

const (
	Prefer    Policy = C.REUSEPORT_PREFER
	Require   Policy = C.REUSEPORT_REQUIRE
	CloseOnly Policy = C.REUSEPORT_CLOSE_ONLY
)

// LastOn says what to do if the drain would leave a group without an ON member.
type LastOn uint32

const (
	LastRefuse LastOn = C.REUSEPORT_LAST_REFUSE
	LastWait   LastOn = C.REUSEPORT_LAST_WAIT
	LastLeave  LastOn = C.REUSEPORT_LAST_LEAVE
)

// AtDeadline says what to do with a listener that is not drained at the deadline.
type AtDeadline uint32

const (
	DeadlineClose AtDeadline = C.REUSEPORT_DEADLINE_CLOSE
	DeadlineUndo  AtDeadline = C.REUSEPORT_DEADLINE_UNDO
	DeadlineKeep  AtDeadline = C.REUSEPORT_DEADLINE_KEEP
)

// Action is what to do before the next Step.
type Action uint32

const (
	Done       Action = C.REUSEPORT_DONE
	AcceptMore Action = C.REUSEPORT_ACCEPT_MORE
	Wait       Action = C.REUSEPORT_WAIT
)

// Outcome of a drain; after the first two, from best to worst.
type Outcome uint32

const (
	NotStarted     Outcome = C.REUSEPORT_NOT_STARTED
	Running        Outcome = C.REUSEPORT_RUNNING
	Drained        Outcome = C.REUSEPORT_DRAINED
	Migrated       Outcome = C.REUSEPORT_MIGRATED
	Unconfirmed    Outcome = C.REUSEPORT_UNCONFIRMED
	SweptAndClosed Outcome = C.REUSEPORT_SWEPT_AND_CLOSED
	Closed         Outcome = C.REUSEPORT_CLOSED
	DeadlineHit    Outcome = C.REUSEPORT_DEADLINE_HIT
	Vanished       Outcome = C.REUSEPORT_VANISHED
	Undone         Outcome = C.REUSEPORT_UNDONE
)

func (o Outcome) String() string { return C.GoString(C.reuseport_outcome_name(C.uint32_t(o))) }

// Method is how the drain kept new connections away.
type Method uint32

const (
	MethodNone    Method = C.REUSEPORT_METHOD_NONE
	MethodOption  Method = C.REUSEPORT_METHOD_OPTION
	MethodMigrate Method = C.REUSEPORT_METHOD_MIGRATE
	MethodSweep   Method = C.REUSEPORT_METHOD_SWEEP
	MethodClose   Method = C.REUSEPORT_METHOD_CLOSE
)

func (m Method) String() string { return C.GoString(C.reuseport_method_name(C.uint32_t(m))) }

// Unknown is a count that the kernel does not report.
const Unknown uint32 = C.REUSEPORT_UNKNOWN

// Forever means no deadline.
const Forever time.Duration = C.REUSEPORT_FOREVER

// Options of a drain. 0 selects the default of each.
type Options struct {
	Policy     Policy
	LastOn     LastOn
	AtDeadline AtDeadline
	// NoAccept: other processes accept from the sockets. Then there is no fallback.
	NoAccept bool
	Timeout  time.Duration // 0: 30 s
	Poll     time.Duration // 0: 20 ms
	// IsShared reports whether a process that is not ours holds the socket too. nil: the library scans /proc, and
	// children count as other processes.
	IsShared func(fd int) (bool, error)
}

// Step is what to do next.
type Step struct {
	Action Action
	// AcceptMore: accept on each until nothing is left, then step at once. Wait: all that are open.
	Listeners []Listener
	Wait      time.Duration // step again after this time at the latest
}

// Report of a drain.
type Report struct {
	Outcome    Outcome // the worst of all listeners
	Method     Method  // the weakest
	Support    Support // as found by Start
	Lossless   bool    // the drain has ended Drained or Migrated
	TimedOut   bool
	Listeners  int
	Handshakes uint32 // at the last check before close(), summed up
	Queued     uint32
	Took       time.Duration
}

// ListenerReport is the report of one listener; the counts are those of the last check.
type ListenerReport struct {
	FD                          int
	Outcome                     Outcome
	Method                      Method
	Before                      Mode
	Handshakes, Queued, GroupOn uint32
	Errno                       syscall.Errno
	Open                        bool
}

// Drain drains listeners together: Add, Start, Step until Done, Report, Free.
type Drain struct {
	drain    *C.struct_reuseport_drain
	user     unsafe.Pointer // C memory that holds the handle: the library keeps it
	handle   cgo.Handle
	added    map[int]Listener
	isShared func(fd int) (bool, error)
	panicked any // in a callback; re-raised when the library has returned
}

// New creates a drain; call Free at the end.
func New(options Options) (*Drain, error) {
	d := &Drain{added: make(map[int]Listener), isShared: options.IsShared}
	raw := C.struct_reuseport_drain_options{
		policy: C.uint32_t(options.Policy), last_on: C.uint32_t(options.LastOn),
		at_deadline: C.uint32_t(options.AtDeadline),
		timeout_ns:  C.int64_t(options.Timeout), poll_ns: C.int64_t(options.Poll),
		close: (*[0]byte)(C.reuseportGoClose),
	}
	raw.size = C.size_t(unsafe.Sizeof(raw))
	if options.NoAccept {
		raw.flags = C.REUSEPORT_DRAIN_NO_ACCEPT
	}
	if options.IsShared != nil {
		raw.is_shared = (*[0]byte)(C.reuseportGoIsShared)
	}
	d.handle = cgo.NewHandle(d)
	d.user = C.malloc(C.size_t(unsafe.Sizeof(d.handle)))
	*(*cgo.Handle)(d.user) = d.handle
	raw.user = d.user
	if result := C.reuseport_drain_new(&raw, &d.drain); result < 0 {
		d.Free()
		return nil, &Error{syscall.Errno(-result), "drain_new", ""}
	}
	return d, nil
}

//export reuseportGoClose
func reuseportGoClose(fd C.int, user unsafe.Pointer) {
	d := (*(*cgo.Handle)(user)).Value().(*Drain)
	defer d.catch()
	// Waits until no accept is in progress: then the socket is closed.
	d.added[int(fd)].Close()
}

//export reuseportGoIsShared
func reuseportGoIsShared(fd C.int, user unsafe.Pointer) (answer C.int) {
	d := (*(*cgo.Handle)(user)).Value().(*Drain)
	answer = -C.int(syscall.ECANCELED) // after a panic
	defer d.catch()
	shared, err := d.isShared(int(fd))
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno) && errno > 0:
		return -C.int(errno)
	case err != nil:
		return
	case shared:
		return 1
	}
	return 0
}

// No panic may pass through the frames of C.
func (d *Drain) catch() {
	if panicked := recover(); panicked != nil {
		d.panicked = panicked
	}
}

func (d *Drain) check(result C.int) error {
	if panicked := d.panicked; panicked != nil {
		d.panicked = nil
		panic(panicked)
	}
	if result >= 0 {
		return nil
	}
	if err := d.Err(); err != nil {
		return err
	}
	return &Error{syscall.Errno(-result), "drain", ""}
}

// Add takes a listener. The drain closes it, by its Close, when it is drained.
func (d *Drain) Add(listener Listener) error {
	fd, err := FD(listener)
	if err != nil {
		return err
	}
	if err := d.check(C.reuseport_drain_add(d.drain, C.int(fd))); err != nil {
		return err
	}
	d.added[fd] = listener
	return nil
}

// Start switches all listeners or, on failure, none.
func (d *Drain) Start() error { return d.check(C.reuseport_drain_start(d.drain)) }

// Step says what to do next.
func (d *Drain) Step() (step Step, err error) {
	var raw C.struct_reuseport_step
	raw.size = C.size_t(unsafe.Sizeof(raw))
	if err = d.check(C.reuseport_drain_step(d.drain, &raw)); err != nil {
		return
	}
	step.Action, step.Wait = Action(raw.action), time.Duration(raw.wait_ns)
	if raw.n_fds > 0 {
		for _, fd := range unsafe.Slice(raw.fds, int(raw.n_fds)) {
			step.Listeners = append(step.Listeners, d.added[int(fd)])
		}
	}
	return
}

// Undo restores the modes of the open listeners and ends the drain.
func (d *Drain) Undo() error { return d.check(C.reuseport_drain_undo(d.drain)) }

// Report returns what the drain has done so far.
func (d *Drain) Report() Report {
	var raw C.struct_reuseport_drain_report
	raw.size = C.size_t(unsafe.Sizeof(raw))
	C.reuseport_drain_get_report(d.drain, &raw)
	return Report{Outcome(raw.outcome), Method(raw.method), Support(raw.support), raw.lossless == 1,
		raw.timed_out == 1, int(raw.listeners), uint32(raw.handshakes), uint32(raw.queued),
		time.Duration(raw.took_ns)}
}

// Listener returns the report of listener number index, from 0, in the order added.
func (d *Drain) Listener(index int) (ListenerReport, error) {
	var raw C.struct_reuseport_listener_report
	raw.size = C.size_t(unsafe.Sizeof(raw))
	if result := C.reuseport_drain_get_listener(d.drain, C.size_t(index), &raw); result < 0 {
		return ListenerReport{}, &Error{syscall.Errno(-result), "drain_get_listener", ""}
	}
	return ListenerReport{int(raw.fd), Outcome(raw.outcome), Method(raw.method), Mode(raw.before),
		uint32(raw.handshakes), uint32(raw.queued), uint32(raw.group_on), syscall.Errno(-raw.error),
		raw.open == 1}, nil
}

// Err says why the last call failed, why no better method was used, or why the drain was undone; or nil.
func (d *Drain) Err() error {
	var raw C.struct_reuseport_error
	raw.size = C.size_t(unsafe.Sizeof(raw))
	if C.reuseport_drain_get_error(d.drain, &raw) < 0 || raw.error == 0 {
		return nil
	}
	return &Error{syscall.Errno(-raw.error), C.GoString(raw.call), C.GoString(raw.hint)}
}

// Free undoes the drain if it has not ended; it closes no listener. It may be called again.
func (d *Drain) Free() {
	if d.user == nil {
		return
	}
	C.reuseport_drain_free(d.drain)
	d.handle.Delete()
	C.free(d.user)
	d.drain, d.user = nil, nil
}

// Run starts the drain and steps to its end, for servers whose goroutines accept. When ctx ends, it undoes the drain
// and returns the error of ctx, or of Undo if that failed.
func (d *Drain) Run(ctx context.Context) (Report, error) {
	if err := d.Start(); err != nil {
		return d.Report(), err
	}
	for {
		step, err := d.Step()
		if err != nil || step.Action == Done {
			return d.Report(), err
		}
		pause := step.Wait
		if step.Action == AcceptMore {
			pause = time.Millisecond // the server is accepting
		}
		select {
		case <-ctx.Done():
			if err := d.Undo(); err != nil {
				return d.Report(), err
			}
			return d.Report(), ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Retire drains listeners of a server whose goroutines accept, and closes them.
func Retire(ctx context.Context, options Options, listeners ...Listener) (Report, error) {
	d, err := New(options)
	if err != nil {
		return Report{}, err
	}
	defer d.Free()
	for _, listener := range listeners {
		if err := d.Add(listener); err != nil {
			return d.Report(), err
		}
	}
	return d.Run(ctx)
}
