// SPDX-License-Identifier: Apache-2.0
//! Retire `SO_REUSEPORT` listeners without losing connections: libreuseport for Rust.
//!
//! A single file to copy, as a module; no crate but std, Rust 1.63 or later. It links `libreuseport`, which needs only
//! libc: `rustc -lreuseport`, or `-L DIR` with a directory that has only `libreuseport.a` to link statically. The names
//! are those of `<reuseport/reuseport.h>`; libreuseport(3) explains them.
//!
//! ```ignore
//! let mut drain = reuseport::Drain::new(&reuseport::Options::default())?;
//! drain.add(listener)?;                     // a TcpListener or UdpSocket, non-blocking
//! let report = drain.run(|fd| if let Ok(client) = reuseport::accept(fd) { serve(client) })?;
//! println!("{} {}", report.outcome, report.lossless);
//! ```
//!
//! Use a drain from one thread at a time.
#![allow(dead_code)]

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::raw::{c_char, c_int, c_short, c_ulong, c_void};
use std::os::unix::io::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The library's functions and structs, as in its header.
mod c {
    use super::*;

    #[repr(C)]
    pub struct Options {
        pub size: usize,
        pub policy: u32,
        pub last_on: u32,
        pub at_deadline: u32,
        pub flags: u32,
        pub timeout_ns: i64,
        pub poll_ns: i64,
        pub set_mode: Option<extern "C" fn(c_int, c_int, *mut c_void) -> c_int>,
        pub get_info: Option<extern "C" fn(c_int, *mut Info, *mut c_void) -> c_int>,
        pub is_shared: Option<extern "C" fn(c_int, *mut c_void) -> c_int>,
        pub close: Option<extern "C" fn(c_int, *mut c_void)>,
        pub user: *mut c_void,
    }

    #[repr(C)]
    pub struct Step {
        pub size: usize,
        pub action: u32,
        pub n_fds: u32,
        pub fds: *const c_int,
        pub wait_ns: i64,
    }

    #[repr(C)]
    pub struct Report {
        pub size: usize,
        pub outcome: u32,
        pub method: u32,
        pub support: u32,
        pub lossless: u32,
        pub timed_out: u32,
        pub listeners: u32,
        pub handshakes: u32,
        pub queued: u32,
        pub took_ns: i64,
    }

    #[repr(C)]
    pub struct ListenerReport {
        pub size: usize,
        pub fd: i32,
        pub outcome: u32,
        pub method: u32,
        pub before: u32,
        pub handshakes: u32,
        pub queued: u32,
        pub group_on: u32,
        pub error: i32,
        pub open: u32,
        pub reserved: u32,
    }

    #[repr(C)]
    pub struct Error {
        pub size: usize,
        pub error: i32,
        pub fd: i32,
        pub call: *const c_char,
        pub hint: *const c_char,
    }

    #[repr(C)]
    pub struct PollFd {
        pub fd: c_int,
        pub events: c_short,
        pub revents: c_short,
    }

    #[link(name = "reuseport")]
    extern "C" {
        pub fn reuseport_version() -> *const c_char;
        pub fn reuseport_probe(why: *mut *const c_char) -> c_int;
        pub fn reuseport_probe_behaviour(connects: c_int, why: *mut *const c_char) -> c_int;
        pub fn reuseport_get_info(fd: c_int, info: *mut Info) -> c_int;
        pub fn reuseport_set_mode(fd: c_int, mode: c_int) -> c_int;
        pub fn reuseport_drained(info: *const Info) -> c_int;
        pub fn reuseport_hint(error: c_int) -> *const c_char;
        pub fn reuseport_drain_new(options: *const Options, drain: *mut *mut c_void) -> c_int;
        pub fn reuseport_drain_add(drain: *mut c_void, fd: c_int) -> c_int;
        pub fn reuseport_drain_start(drain: *mut c_void) -> c_int;
        pub fn reuseport_drain_step(drain: *mut c_void, step: *mut Step) -> c_int;
        pub fn reuseport_drain_undo(drain: *mut c_void) -> c_int;
        pub fn reuseport_drain_get_report(drain: *const c_void, report: *mut Report) -> c_int;
        pub fn reuseport_drain_get_listener(
            drain: *const c_void,
            index: usize,
            report: *mut ListenerReport,
        ) -> c_int;
        pub fn reuseport_drain_get_error(drain: *const c_void, error: *mut Error) -> c_int;
        pub fn reuseport_drain_free(drain: *mut c_void);
        pub fn reuseport_support_name(support: u32) -> *const c_char;
        pub fn reuseport_outcome_name(outcome: u32) -> *const c_char;
        pub fn reuseport_method_name(method: u32) -> *const c_char;
    }

    // From libc, which std links.
    extern "C" {
        pub fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
        pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        pub fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: u32) -> c_int;
        pub fn bind(fd: c_int, address: *const c_void, len: u32) -> c_int;
        pub fn listen(fd: c_int, backlog: c_int) -> c_int;
    }
}

/// A string from the library; they are static.
fn text(string: *const c_char) -> &'static str {
    if string.is_null() {
        return "";
    }
    unsafe { CStr::from_ptr(string) }.to_str().unwrap_or("")
}

/// Which call failed, its errno, and how to fix it (may be empty).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    pub errno: i32,
    pub call: &'static str,
    pub hint: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, io::Error::from_raw_os_error(self.errno))?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, ": {}", self.hint) }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(io::Error::from_raw_os_error(error.errno).kind(), error)
    }
}

/// The version of the library in use, such as "1.0.0".
pub fn version() -> &'static str {
    text(unsafe { c::reuseport_version() })
}

/// How to fix an errno of `get_info` or `set_mode`, or "".
pub fn hint(errno: i32) -> &'static str {
    text(unsafe { c::reuseport_hint(errno) })
}

// ---- Is the option available? ----

/// What a probe found; `Display` prints its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support(pub u32);

impl Support {
    pub const ERROR: Support = Support(0);
    pub const SUPPORTED: Support = Support(1);
    pub const SUPPORTED_BY_BPF: Support = Support(2);
    pub const NOT_IN_KERNEL: Support = Support(3);
    pub const NUMBER_TAKEN: Support = Support(4);
    pub const BLOCKED: Support = Support(5);

    /// By the kernel or by BPF.
    pub fn ok(self) -> bool {
        self == Support::SUPPORTED || self == Support::SUPPORTED_BY_BPF
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(unsafe { c::reuseport_support_name(self.0) }))
    }
}

/// Whether this kernel has the option, and why; cached per process.
pub fn probe() -> (Support, &'static str) {
    let mut why = std::ptr::null();
    let support = unsafe { c::reuseport_probe(&mut why) };
    (Support(support as u32), text(why))
}

/// As `probe`, and tests the option with connections over loopback; not cached.
pub fn probe_behaviour(connects: i32) -> (Support, &'static str) {
    let mut why = std::ptr::null();
    let support = unsafe { c::reuseport_probe_behaviour(connects, &mut why) };
    (Support(support as u32), text(why))
}

// ---- One listener ----

pub const ON: u32 = 0;
pub const OFF: u32 = 1;
pub const STANDBY: u32 = 2;

/// `struct reuseport_listen_info`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    pub mode: u32,
    pub flags: u32,
    pub handshakes: u32,
    pub queued: u32,
    pub group_id: u32,
    pub group_on: u32,
    pub group_standby: u32,
    pub group_off: u32,
}

impl Info {
    pub fn settled(&self) -> bool {
        self.flags & 1 != 0
    }
    pub fn cookies(&self) -> bool {
        self.flags & 2 != 0
    }
    pub fn by_bpf(&self) -> bool {
        self.flags & 1 << 31 != 0
    }
    /// `close()` would lose nothing ("drained" in `<linux/reuseport.h>`).
    pub fn drained(&self) -> bool {
        unsafe { c::reuseport_drained(self) == 1 }
    }
}

fn failed(result: c_int, call: &'static str) -> Result<(), Error> {
    if result >= 0 {
        return Ok(());
    }
    Err(Error { errno: -result, call, hint: hint(result) })
}

/// `getsockopt(SO_REUSEPORT_LISTEN_OFF)`
pub fn get_info(fd: RawFd) -> Result<Info, Error> {
    let mut info = Info::default();
    let result = unsafe { c::reuseport_get_info(fd, &mut info) };
    failed(result, "getsockopt(SO_REUSEPORT_LISTEN_OFF)").map(|()| info)
}

/// `setsockopt(SO_REUSEPORT_LISTEN_OFF)`: `ON`, `OFF` or `STANDBY`
pub fn set_mode(fd: RawFd, mode: u32) -> Result<(), Error> {
    let result = unsafe { c::reuseport_set_mode(fd, mode as c_int) };
    failed(result, "setsockopt(SO_REUSEPORT_LISTEN_OFF)")
}

/// A bound, non-blocking socket with `SO_REUSEPORT`. The constants are those of all Linux architectures except alpha,
/// mips, parisc and sparc.
#[cfg(not(any(target_arch = "mips", target_arch = "mips64", target_arch = "sparc", target_arch = "sparc64")))]
fn bound(address: SocketAddr, kind: c_int) -> io::Result<OwnedFd> {
    const SOCK_NONBLOCK: c_int = 0o4000;
    const SOCK_CLOEXEC: c_int = 0o2000000;
    const SOL_SOCKET: c_int = 1;
    const SO_REUSEPORT: c_int = 15;
    // sockaddr_in and sockaddr_in6: family, port, then the fields of the family
    let mut name = [0u8; 28];
    name[2..4].copy_from_slice(&address.port().to_be_bytes());
    let (family, len): (u16, u32) = match address {
        SocketAddr::V4(v4) => {
            name[4..8].copy_from_slice(&v4.ip().octets());
            (2, 16)
        }
        SocketAddr::V6(v6) => {
            name[8..24].copy_from_slice(&v6.ip().octets());
            name[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            (10, 28)
        }
    };
    name[0..2].copy_from_slice(&family.to_ne_bytes());
    let one: c_int = 1;
    unsafe {
        let fd = checked(c::socket(family.into(), kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(fd);
        checked(c::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one as *const c_int as *const c_void, 4))?;
        checked(c::bind(fd, name.as_ptr() as *const c_void, len))?;
        Ok(socket)
    }
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `TcpListener::bind` with `SO_REUSEPORT`, non-blocking
pub fn listen(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    const SOCK_STREAM: c_int = 1;
    let socket = bound(address, SOCK_STREAM)?;
    checked(unsafe { c::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket.into())
}

/// `UdpSocket::bind` with `SO_REUSEPORT`, non-blocking
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    const SOCK_DGRAM: c_int = 2;
    bound(address, SOCK_DGRAM).map(UdpSocket::from)
}

/// Accepts on a descriptor that `Drain` returned.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<TcpStream> {
    let listener = ManuallyDrop::new(unsafe { TcpListener::from_raw_fd(fd.as_raw_fd()) });
    listener.accept().map(|(client, _)| client)
}

// ---- The drain ----

/// What a drain may do if the option is not available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Prefer = 0,
    Require = 1,
    CloseOnly = 2,
}

/// What to do if the drain would leave a group without an ON member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastOn {
    Refuse = 0,
    Wait = 1,
    Leave = 2,
}

/// What to do with a listener that is not drained at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtDeadline {
    Close = 0,
    Undo = 1,
    Keep = 2,
}

/// Whether a process that is not ours holds the socket too, or an errno.
pub type IsShared = Box<dyn FnMut(RawFd) -> Result<bool, i32> + Send>;

pub struct Options {
    pub policy: Policy,
    pub last_on: LastOn,
    pub at_deadline: AtDeadline,
    /// False: other processes accept from the sockets. Then there is no fallback.
    pub accept: bool,
    /// Zero: 30 s. `Duration::MAX`: no deadline.
    pub timeout: Duration,
    /// Zero: 20 ms
    pub poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            policy: Policy::Prefer,
            last_on: LastOn::Refuse,
            at_deadline: AtDeadline::Close,
            accept: true,
            timeout: Duration::ZERO,
            poll: Duration::ZERO,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Done,
    /// Accept on each of `fds` until nothing is left, then step at once.
    AcceptMore,
    /// Keep serving; step when one of `fds` is readable or `wait` has passed.
    Wait,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    pub fds: Vec<RawFd>,
    pub wait: Duration,
}

/// After the first two, from best to worst; `Display` prints its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome(pub u32);

impl Outcome {
    pub const NOT_STARTED: Outcome = Outcome(0);
    pub const RUNNING: Outcome = Outcome(1);
    pub const DRAINED: Outcome = Outcome(2);
    pub const MIGRATED: Outcome = Outcome(3);
    pub const UNCONFIRMED: Outcome = Outcome(4);
    pub const SWEPT_AND_CLOSED: Outcome = Outcome(5);
    pub const CLOSED: Outcome = Outcome(6);
    pub const DEADLINE_HIT: Outcome = Outcome(7);
    pub const VANISHED: Outcome = Outcome(8);
    pub const UNDONE: Outcome = Outcome(9);
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(unsafe { c::reuseport_outcome_name(self.0) }))
    }
}

/// How the drain kept new connections away; `Display` prints its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Method(pub u32);

impl Method {
    pub const NONE: Method = Method(0);
    pub const OPTION: Method = Method(1);
    pub const MIGRATE: Method = Method(2);
    pub const SWEEP: Method = Method(3);
    pub const CLOSE: Method = Method(4);
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(unsafe { c::reuseport_method_name(self.0) }))
    }
}

/// The outcome is the worst of all listeners, the method the weakest. A count is `None` if the kernel does not report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub outcome: Outcome,
    pub method: Method,
    pub support: Support,
    pub lossless: bool,
    pub timed_out: bool,
    pub listeners: u32,
    pub handshakes: Option<u32>,
    pub queued: Option<u32>,
    pub took: Duration,
}

/// The report of one listener; counts are those of the last check. `errno` is 0 if that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerReport {
    pub fd: RawFd,
    pub outcome: Outcome,
    pub method: Method,
    pub before: u32,
    pub handshakes: Option<u32>,
    pub queued: Option<u32>,
    pub group_on: u32,
    pub errno: i32,
    pub open: bool,
}

fn count(number: u32) -> Option<u32> {
    if number == u32::MAX { None } else { Some(number) }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// A listener that a drain did not take, and why.
#[derive(Debug)]
pub struct Rejected {
    pub error: Error,
    pub listener: OwnedFd,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Rejected {}

/// Drains listeners together: `add`, `start`, `step` until `Action::Done`, `report`.
///
/// It owns its listeners: if it is dropped before its end, it restores every mode and then closes the listeners;
/// `take_back` returns them instead.
pub struct Drain {
    drain: *mut c_void,
    // Boxed twice: the library keeps a thin pointer to the inner box.
    _is_shared: Option<Box<IsShared>>,
}

// The library has no threads and no thread-local state.
unsafe impl Send for Drain {}

extern "C" fn ask_is_shared(fd: c_int, user: *mut c_void) -> c_int {
    const ECANCELED: c_int = 125;
    let ask = unsafe { &mut *(user as *mut IsShared) };
    // No panic may pass through the library.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(fd))) {
        Ok(Ok(shared)) => shared as c_int,
        Ok(Err(errno)) if errno > 0 => -errno,
        _ => -ECANCELED,
    }
}

impl Drain {
    pub fn new(options: &Options) -> Result<Drain, Error> {
        Drain::make(options, None)
    }

    /// Without `is_shared` the library scans /proc, and children count as other processes.
    pub fn with_is_shared(options: &Options, is_shared: IsShared) -> Result<Drain, Error> {
        Drain::make(options, Some(Box::new(is_shared)))
    }

    fn make(options: &Options, mut is_shared: Option<Box<IsShared>>) -> Result<Drain, Error> {
        let user = is_shared.as_mut().map_or(std::ptr::null_mut(), |boxed| &mut **boxed as *mut IsShared as *mut c_void);
        let raw = c::Options {
            size: mem::size_of::<c::Options>(),
            policy: options.policy as u32,
            last_on: options.last_on as u32,
            at_deadline: options.at_deadline as u32,
            flags: !options.accept as u32,
            timeout_ns: nanoseconds(options.timeout),
            poll_ns: nanoseconds(options.poll),
            set_mode: None,
            get_info: None,
            is_shared: if user.is_null() { None } else { Some(ask_is_shared) },
            close: None,
            user,
        };
        let mut drain = std::ptr::null_mut();
        let result = unsafe { c::reuseport_drain_new(&raw, &mut drain) };
        if result < 0 {
            return Err(Error { errno: -result, call: "drain_new", hint: "" });
        }
        Ok(Drain { drain, _is_shared: is_shared })
    }

    fn check(&self, result: c_int) -> Result<c_int, Error> {
        if result >= 0 {
            return Ok(result);
        }
        Err(self.error().unwrap_or(Error { errno: -result, call: "drain", hint: "" }))
    }

    /// Adds a non-blocking `TcpListener`, `UdpSocket` or `OwnedFd`. The drain closes it when it is drained.
    pub fn add<L: Into<OwnedFd>>(&mut self, listener: L) -> Result<(), Rejected> {
        let listener = listener.into();
        let result = unsafe { c::reuseport_drain_add(self.drain, listener.as_raw_fd()) };
        match self.check(result) {
            Ok(_) => {
                let _ = listener.into_raw_fd();
                Ok(())
            }
            Err(error) => Err(Rejected { error, listener }),
        }
    }

    /// Switches all listeners or, on failure, none.
    pub fn start(&mut self) -> Result<(), Error> {
        self.check(unsafe { c::reuseport_drain_start(self.drain) }).map(drop)
    }

    pub fn step(&mut self) -> Result<Step, Error> {
        let mut raw = c::Step {
            size: mem::size_of::<c::Step>(),
            action: 0,
            n_fds: 0,
            fds: std::ptr::null(),
            wait_ns: 0,
        };
        self.check(unsafe { c::reuseport_drain_step(self.drain, &mut raw) })?;
        let fds = match raw.n_fds {
            0 => Vec::new(),
            some => unsafe { std::slice::from_raw_parts(raw.fds, some as usize) }.to_vec(),
        };
        let action = match raw.action {
            0 => Action::Done,
            1 => Action::AcceptMore,
            _ => Action::Wait,
        };
        Ok(Step { action, fds, wait: Duration::from_nanos(raw.wait_ns.max(0) as u64) })
    }

    /// Restores the modes of the open listeners and ends the drain.
    pub fn undo(&mut self) -> Result<(), Error> {
        self.check(unsafe { c::reuseport_drain_undo(self.drain) }).map(drop)
    }

    /// Starts, and steps to the end; calls `take` with each listener as long as it has something to accept.
    pub fn run(&mut self, mut take: impl FnMut(BorrowedFd<'_>)) -> Result<Report, Error> {
        self.start()?;
        loop {
            let step = self.step()?;
            match step.action {
                Action::Done => return Ok(self.report()),
                Action::AcceptMore => {
                    for fd in step.fds {
                        take(unsafe { BorrowedFd::borrow_raw(fd) });
                    }
                }
                Action::Wait => {
                    const POLLIN: c_short = 1;
                    let mut fds: Vec<_> =
                        step.fds.iter().map(|&fd| c::PollFd { fd, events: POLLIN, revents: 0 }).collect();
                    let wait = (step.wait.as_nanos() + 999_999) / 1_000_000;
                    let wait = c_int::try_from(wait).unwrap_or(c_int::MAX);
                    let ready = unsafe { c::poll(fds.as_mut_ptr(), fds.len() as c_ulong, wait) };
                    // An error is no connection: do not spin.
                    if ready > 0 && fds.iter().all(|fd| fd.revents & POLLIN == 0) {
                        std::thread::sleep(step.wait);
                    }
                }
            }
        }
    }

    pub fn report(&self) -> Report {
        let mut raw: c::Report = unsafe { mem::zeroed() };
        raw.size = mem::size_of::<c::Report>();
        unsafe { c::reuseport_drain_get_report(self.drain, &mut raw) };
        Report {
            outcome: Outcome(raw.outcome),
            method: Method(raw.method),
            support: Support(raw.support),
            lossless: raw.lossless == 1,
            timed_out: raw.timed_out == 1,
            listeners: raw.listeners,
            handshakes: count(raw.handshakes),
            queued: count(raw.queued),
            took: Duration::from_nanos(raw.took_ns.max(0) as u64),
        }
    }

    /// The report of listener number `index`, from 0, in the order added.
    pub fn listener(&self, index: usize) -> Result<ListenerReport, Error> {
        let mut raw: c::ListenerReport = unsafe { mem::zeroed() };
        raw.size = mem::size_of::<c::ListenerReport>();
        let result = unsafe { c::reuseport_drain_get_listener(self.drain, index, &mut raw) };
        if result < 0 {
            return Err(Error { errno: -result, call: "drain_get_listener", hint: "" });
        }
        Ok(ListenerReport {
            fd: raw.fd,
            outcome: Outcome(raw.outcome),
            method: Method(raw.method),
            before: raw.before,
            handshakes: count(raw.handshakes),
            queued: count(raw.queued),
            group_on: raw.group_on,
            errno: -raw.error,
            open: raw.open == 1,
        })
    }

    /// Why the last call failed, why no better method was used, or why the drain was undone.
    pub fn error(&self) -> Option<Error> {
        let mut raw: c::Error = unsafe { mem::zeroed() };
        raw.size = mem::size_of::<c::Error>();
        let result = unsafe { c::reuseport_drain_get_error(self.drain, &mut raw) };
        if result < 0 || raw.error == 0 {
            return None;
        }
        Some(Error { errno: -raw.error, call: text(raw.call), hint: text(raw.hint) })
    }

    /// Ends the drain, undoing it if it has not ended, and returns the open listeners in the order of `add`.
    pub fn take_back(mut self) -> Vec<OwnedFd> {
        self.end()
    }

    fn end(&mut self) -> Vec<OwnedFd> {
        let _ = self.undo();
        let open = (0..).map_while(|index| self.listener(index).ok()).filter(|listener| listener.open);
        let open = open.map(|listener| unsafe { OwnedFd::from_raw_fd(listener.fd) }).collect();
        unsafe { c::reuseport_drain_free(self.drain) };
        self.drain = std::ptr::null_mut();
        open
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if !self.drain.is_null() {
            self.end(); // and closes them
        }
    }
}
