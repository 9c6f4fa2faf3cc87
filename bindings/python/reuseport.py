# SPDX-License-Identifier: Apache-2.0
"""Retire SO_REUSEPORT listeners without losing connections: libreuseport for Python.

A single file to copy. It calls the shared library libreuseport.so.1 through ctypes; nothing is compiled. The names
are those of <reuseport/reuseport.h>; libreuseport(3) explains them.

    drain = reuseport.Drain()
    drain.add(listener)                     # a listening, non-blocking socket with SO_REUSEPORT
    report = drain.run(lambda listener: serve(*listener.accept()))
    print(report.outcome, report.lossless)  # "drained" True

In an asyncio server, whose loop accepts: report = await drain.run_async().

Use a drain from one thread at a time. A call that fails raises Error, an OSError with the failing call and
a hint. Python 3.9 or later.
"""

import asyncio
import ctypes
import errno
import os
import select
import time
from dataclasses import dataclass
from typing import Any, Callable, Optional

SO_REUSEPORT_LISTEN_OFF = 0x5250

# Modes
ON, OFF, STANDBY = 0, 1, 2
# enum reuseport_policy
PREFER, REQUIRE, CLOSE_ONLY = 0, 1, 2
# enum reuseport_last_on
LAST_REFUSE, LAST_WAIT, LAST_LEAVE = 0, 1, 2
# enum reuseport_at_deadline
DEADLINE_CLOSE, DEADLINE_UNDO, DEADLINE_KEEP = 0, 1, 2
# enum reuseport_action
DONE, ACCEPT_MORE, WAIT = 0, 1, 2

_UNKNOWN = 0xFFFFFFFF
_FOREVER = 0x7FFFFFFFFFFFFFFF
_NO_ACCEPT = 1

_IS_SHARED = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
_CLOSE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)


def _struct(name: str, **fields: Any) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_u32, _i32, _i64, _size, _text, _pointer = (
    ctypes.c_uint32, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)
_Info = _struct("_Info", mode=_u32, flags=_u32, handshakes=_u32, queued=_u32,
                group_id=_u32, group_on=_u32, group_standby=_u32, group_off=_u32)
_Options = _struct("_Options", size=_size, policy=_u32, last_on=_u32, at_deadline=_u32, flags=_u32,
                   timeout_ns=_i64, poll_ns=_i64, set_mode=_pointer, get_info=_pointer,
                   is_shared=_IS_SHARED, close=_CLOSE, user=_pointer)
_Step = _struct("_Step", size=_size, action=_u32, n_fds=_u32, fds=ctypes.POINTER(ctypes.c_int), wait_ns=_i64)
_Report = _struct("_Report", size=_size, outcome=_u32, method=_u32, support=_u32, lossless=_u32, timed_out=_u32,
                  listeners=_u32, handshakes=_u32, queued=_u32, took_ns=_i64)
_Listener = _struct("_Listener", size=_size, fd=_i32, outcome=_u32, method=_u32, before=_u32, handshakes=_u32,
                    queued=_u32, group_on=_u32, error=_i32, open=_u32, reserved=_u32)
_Error = _struct("_Error", size=_size, error=_i32, fd=_i32, call=_text, hint=_text)


def _load(name: str) -> Any:
    lib = ctypes.CDLL(name)
    ref = ctypes.POINTER
    for function, result, *arguments in (
            ("version", _text),
            ("probe", ctypes.c_int, ref(_text)),
            ("probe_behaviour", ctypes.c_int, ctypes.c_int, ref(_text)),
            ("get_info", ctypes.c_int, ctypes.c_int, ref(_Info)),
            ("set_mode", ctypes.c_int, ctypes.c_int, ctypes.c_int),
            ("drained", ctypes.c_int, ref(_Info)),
            ("hint", _text, ctypes.c_int),
            ("drain_new", ctypes.c_int, ref(_Options), ref(_pointer)),
            ("drain_add", ctypes.c_int, _pointer, ctypes.c_int),
            ("drain_start", ctypes.c_int, _pointer),
            ("drain_step", ctypes.c_int, _pointer, ref(_Step)),
            ("drain_undo", ctypes.c_int, _pointer),
            ("drain_get_report", ctypes.c_int, _pointer, ref(_Report)),
            ("drain_get_listener", ctypes.c_int, _pointer, _size, ref(_Listener)),
            ("drain_get_error", ctypes.c_int, _pointer, ref(_Error)),
            ("drain_free", None, _pointer),
            ("support_name", _text, _u32),
            ("outcome_name", _text, _u32),
            ("method_name", _text, _u32)):
        entry = getattr(lib, "reuseport_" + function)
        entry.restype, entry.argtypes = result, arguments
    return lib


# LIBREUSEPORT names another file.
_lib = _load(os.environ.get("LIBREUSEPORT", "libreuseport.so.1"))


class Error(OSError):
    """errno, call (what failed), hint (how to fix it, may be empty), fd (of the listener, or None)."""

    def __init__(self, number: int, call: str, hint: str, fd: Optional[int] = None):
        super().__init__(number, os.strerror(number))
        self.call, self.hint, self.fd = call, hint, fd

    def __str__(self) -> str:
        return f"{self.call}: {self.strerror}" + (f": {self.hint}" if self.hint else "")


def version() -> str:
    """The version of the library in use, such as "1.0.0"."""
    return _lib.reuseport_version().decode()


# ---- Is the option available? ----


@dataclass(frozen=True)
class Probe:
    """support: "supported", "supported_by_bpf", "not_in_kernel", "number_taken", "blocked" or "error"."""
    support: str
    why: str

    @property
    def supported(self) -> bool:
        return self.support in ("supported", "supported_by_bpf")


def _probe(answer: int, why: Any) -> Probe:
    return Probe(_lib.reuseport_support_name(answer).decode(), (why.value or b"").decode())


def probe() -> Probe:
    """Whether this kernel has the option; cached per process."""
    why = _text()
    return _probe(_lib.reuseport_probe(ctypes.byref(why)), why)


def probe_behaviour(connects: int = 32) -> Probe:
    """As probe(), and tests the option with connections over loopback; not cached."""
    why = _text()
    return _probe(_lib.reuseport_probe_behaviour(connects, ctypes.byref(why)), why)


# ---- One listener ----


@dataclass(frozen=True)
class Info:
    """struct reuseport_listen_info"""
    mode: int
    flags: int
    handshakes: int
    queued: int
    group_id: int
    group_on: int
    group_standby: int
    group_off: int

    @property
    def settled(self) -> bool:
        return bool(self.flags & 1)

    @property
    def cookies(self) -> bool:
        return bool(self.flags & 2)

    @property
    def by_bpf(self) -> bool:
        return bool(self.flags & 1 << 31)

    @property
    def drained(self) -> bool:
        """close() would lose nothing ("drained" in <linux/reuseport.h>)."""
        raw = _Info(**self.__dict__)
        return _lib.reuseport_drained(ctypes.byref(raw)) == 1


def hint(number: int) -> str:
    """How to fix an errno of get_info() or set_mode(), or ""."""
    return _lib.reuseport_hint(number).decode()


def _fileno(listener: Any) -> int:
    return listener if isinstance(listener, int) else listener.fileno()


def get_info(listener: Any) -> Info:
    """getsockopt(SO_REUSEPORT_LISTEN_OFF) of a socket or descriptor."""
    raw = _Info()
    result = _lib.reuseport_get_info(_fileno(listener), ctypes.byref(raw))
    if result < 0:
        raise Error(-result, "getsockopt(SO_REUSEPORT_LISTEN_OFF)", hint(result), _fileno(listener))
    return Info(*(getattr(raw, name) for name, _ in _Info._fields_))


def set_mode(listener: Any, mode: int) -> None:
    """setsockopt(SO_REUSEPORT_LISTEN_OFF): ON, OFF or STANDBY."""
    result = _lib.reuseport_set_mode(_fileno(listener), mode)
    if result < 0:
        raise Error(-result, "setsockopt(SO_REUSEPORT_LISTEN_OFF)", hint(result), _fileno(listener))


# ---- The drain ----


@dataclass(frozen=True)
class Step:
    """action: DONE, ACCEPT_MORE (on each of fds until EAGAIN, then step at once) or WAIT (keep serving; step when
    one of fds is readable or `wait` seconds have passed)."""
    action: int
    fds: "tuple[int, ...]"
    wait: float


@dataclass(frozen=True)
class Report:
    """outcome: "drained", "migrated", "unconfirmed", "swept_and_closed", "closed", "deadline_hit", "vanished" or
    "undone", the worst of all listeners; before the end "not_started" or "running". A count is None if the
    kernel does not report it."""
    outcome: str
    method: str
    support: str
    lossless: bool
    timed_out: bool
    listeners: int
    handshakes: Optional[int]
    queued: Optional[int]
    took: float


@dataclass(frozen=True)
class ListenerReport:
    """The report of one listener; counts are those of the last check. error: an errno, or 0."""
    fd: int
    outcome: str
    method: str
    before: int
    handshakes: Optional[int]
    queued: Optional[int]
    group_on: int
    error: int
    open: bool


def _count(number: int) -> Optional[int]:
    return None if number == _UNKNOWN else number


def _ns(seconds: Optional[float]) -> int:
    if seconds is None or seconds >= _FOREVER / 1e9:
        return _FOREVER
    return int(seconds * 1e9) if seconds >= 0 else -1


def _is_open(fd: int, before: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), before)
    except OSError:
        return False


class Drain:
    """Drains listeners together: add ..., start, step ... until DONE, report.

    timeout, poll: seconds; 0 selects the default of the library (30 s, 20 ms), a timeout of None means no deadline.
    accept=False: other processes accept from the sockets, such as the workers of this one; then there is no
    fallback. is_shared(listener): whether a process that is not ours holds the socket too; without it the library
    scans /proc, and children count as other processes.
    """

    def __init__(self, *, policy: int = PREFER, last_on: int = LAST_REFUSE, at_deadline: int = DEADLINE_CLOSE,
                 accept: bool = True, timeout: Optional[float] = 0, poll: float = 0,
                 is_shared: Optional[Callable[[Any], bool]] = None):
        self._drain = _pointer()
        self._added: "dict[int, Any]" = {}
        self._closers: "dict[int, Callable[[], None]]" = {}
        self._raised: Optional[BaseException] = None
        # Keep references: the library calls them.
        self._close = _CLOSE(self._on_close)
        self._shared = _IS_SHARED(lambda fd, _: self._on_shared(is_shared, fd)) if is_shared else _IS_SHARED()
        options = _Options(ctypes.sizeof(_Options), policy, last_on, at_deadline, 0 if accept else _NO_ACCEPT,
                           _ns(timeout), _ns(poll), None, None, self._shared, self._close, None)
        result = _lib.reuseport_drain_new(ctypes.byref(options), ctypes.byref(self._drain))
        if result < 0:
            raise Error(-result, "drain_new", "")

    # An exception must not pass through the library: keep it, and raise it after the library has returned.
    def _on_close(self, fd: int, _: Any) -> None:
        try:
            before = os.fstat(fd)
            self._closers.pop(fd)()
            if _is_open(fd, before):
                raise Error(errno.EBUSY, "close", "what was given to add() left the listener open", fd)
        except BaseException as raised:  # pylint: disable=broad-except
            self._raised = raised

    def _on_shared(self, is_shared: Any, fd: int) -> int:
        try:
            return 1 if is_shared(self._added[fd]) else 0
        except OSError as unknown:  # comes back as Error
            return -(unknown.errno or errno.EIO)
        except BaseException as raised:  # pylint: disable=broad-except
            self._raised = raised
            return -errno.ECANCELED

    def _check(self, result: int) -> int:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        if result < 0:
            raise self.error or Error(-result, "drain", "")
        return result

    def add(self, listener: Any, close: Optional[Callable[[], None]] = None) -> None:
        """Adds a non-blocking socket (anything with fileno() and close()) or descriptor. The drain closes it when it is
        drained, by `close` if given, such as the close() of a server that has it in its loop. `close` must have closed
        the descriptor when it returns."""
        fd = _fileno(listener)
        if close is None:
            close = (lambda: os.close(fd)) if isinstance(listener, int) else listener.close
        self._check(_lib.reuseport_drain_add(self._drain, fd))
        self._added[fd] = listener
        self._closers[fd] = close

    def start(self) -> None:
        """Switches all listeners or, on failure, none."""
        self._check(_lib.reuseport_drain_start(self._drain))

    def step(self) -> Step:
        raw = _Step(size=ctypes.sizeof(_Step))
        self._check(_lib.reuseport_drain_step(self._drain, ctypes.byref(raw)))
        return Step(raw.action, tuple(raw.fds[i] for i in range(raw.n_fds)), raw.wait_ns / 1e9)

    def undo(self) -> None:
        """Restores the modes of the open listeners and ends the drain."""
        self._check(_lib.reuseport_drain_undo(self._drain))

    def run(self, accept: Callable[[Any], None]) -> Report:
        """Starts, and steps to the end. Calls `accept` with each listener, as passed to add(), as long as it has
        something to accept. An exception from `accept` undoes the drain and is raised from here, except
        BlockingIOError and ConnectionAbortedError, which mean that the client is gone."""
        self.start()
        try:
            return self._run(accept)
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        try:
            self.undo()
        except Error:
            pass  # already done, or close() tries again

    def _run(self, accept: Callable[[Any], None]) -> Report:
        while True:
            step = self.step()
            if step.action == DONE:
                return self.report
            if step.action == ACCEPT_MORE:
                for fd in step.fds:
                    try:
                        accept(self._added[fd])
                    except (BlockingIOError, ConnectionAbortedError):
                        pass  # the client is gone, or another thread was faster
                continue
            poll = select.poll()
            for fd in step.fds:
                poll.register(fd, select.POLLIN)
            # Round up to a millisecond. Without fds, sleep.
            if step.fds:
                ready = poll.poll(-(-step.wait * 1000 // 1))
                if ready and not any(events & select.POLLIN for _, events in ready):
                    time.sleep(step.wait)  # an error is no connection: do not spin
            else:
                time.sleep(step.wait)

    async def run_async(self) -> Report:
        """The same in an asyncio loop whose server accepts. Cancelling the task undoes the drain."""
        self.start()
        try:
            while True:
                step = self.step()
                if step.action == DONE:
                    break
                # Never sleep(0): the next step would run before the loop has attached what it just accepted, and a close
                # would lose that. A timer runs after it.
                await asyncio.sleep(step.wait if step.action == WAIT and step.wait > 0 else 0.001)
        except BaseException:
            self._give_back()
            raise
        # A socket that the loop accepted in this turn gets to its protocol in one of the next: only then can a caller count it.
        for _ in range(8):
            await asyncio.sleep(0)
        return self.report

    @property
    def report(self) -> Report:
        raw = _Report(size=ctypes.sizeof(_Report))
        self._check(_lib.reuseport_drain_get_report(self._drain, ctypes.byref(raw)))
        return Report(_lib.reuseport_outcome_name(raw.outcome).decode(), _lib.reuseport_method_name(raw.method).decode(),
                      _lib.reuseport_support_name(raw.support).decode(), raw.lossless == 1, raw.timed_out == 1,
                      raw.listeners, _count(raw.handshakes), _count(raw.queued), raw.took_ns / 1e9)

    def listener(self, index: int) -> ListenerReport:
        """The report of listener number `index`, from 0, in the order added."""
        raw = _Listener(size=ctypes.sizeof(_Listener))
        result = _lib.reuseport_drain_get_listener(self._drain, index, ctypes.byref(raw))
        if result < 0:
            raise Error(-result, "drain_get_listener", "")
        return ListenerReport(raw.fd, _lib.reuseport_outcome_name(raw.outcome).decode(),
                              _lib.reuseport_method_name(raw.method).decode(), raw.before, _count(raw.handshakes),
                              _count(raw.queued), raw.group_on, -raw.error, raw.open == 1)

    @property
    def error(self) -> Optional[Error]:
        """Why the last call failed, why no better method was used, or why the drain was undone; or None."""
        raw = _Error(size=ctypes.sizeof(_Error))
        if _lib.reuseport_drain_get_error(self._drain, ctypes.byref(raw)) < 0 or raw.error == 0:
            return None
        return Error(-raw.error, raw.call.decode(), raw.hint.decode(), None if raw.fd < 0 else raw.fd)

    def close(self) -> None:
        """Undoes the drain if it has not ended; closes no listener."""
        drain, self._drain = self._drain, _pointer()
        _lib.reuseport_drain_free(drain)

    def __enter__(self) -> "Drain":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_drain", None):
            self.close()
