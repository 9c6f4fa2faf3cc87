// SPDX-License-Identifier: Apache-2.0
//! The cases of ../c/conformance.c by reuseport.rs; must print the same.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::io::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

#[path = "reuseport.rs"]
mod reuseport;
use reuseport::{Action, AtDeadline, Drain, Error, LastOn, Options, Policy};

const EIO: i32 = 5;
const ESTALE: i32 = 116;

fn open() -> TcpListener {
    reuseport::listen("127.0.0.1:0".parse().unwrap(), 16).expect("listen")
}

fn pair(queued: usize) -> (TcpListener, TcpListener) {
    let old = open();
    dial(old.local_addr().unwrap(), queued);
    let fresh = reuseport::listen(old.local_addr().unwrap(), 16).expect("listen beside");
    (old, fresh)
}

fn dial(to: SocketAddr, number: usize) {
    for _ in 0..number {
        std::mem::forget(TcpStream::connect(to).expect("connect"));
    }
}

fn accept_all(fd: RawFd) -> usize {
    let mut number = 0;
    while let Ok(client) = reuseport::accept(unsafe { BorrowedFd::borrow_raw(fd) }) {
        std::mem::forget(client);
        number += 1;
    }
    number
}

fn print_error(name: &str, error: &Error) {
    println!("{}: {}|{}|{}", name, error.call, error.errno, error.hint);
}

fn print_result(name: &str, result: Result<(), Error>) {
    match result {
        Ok(()) => println!("{name}: ok"),
        Err(error) => print_error(name, &error),
    }
}

fn count(number: Option<u32>) -> String {
    number.map_or("-".to_string(), |number| number.to_string())
}

fn print_report(name: &str, drain: &Drain) {
    let r = drain.report();
    println!(
        "{name}: outcome={} method={} support={} lossless={} timed_out={} listeners={} handshakes={} queued={}",
        r.outcome, r.method, r.support, r.lossless as u32, r.timed_out as u32, r.listeners, count(r.handshakes), count(r.queued)
    );
    for i in 0..r.listeners as usize {
        let l = drain.listener(i).expect("listener");
        println!(
            "{name}, listener {i}: outcome={} method={} before={} handshakes={} queued={} group_on={} error={} open={}",
            l.outcome, l.method, l.before, count(l.handshakes), count(l.queued), l.group_on, l.errno, l.open as u32
        );
    }
}

fn print_mode(name: &str, fd: RawFd) {
    match reuseport::get_info(fd) {
        Err(error) => print_error(name, &error),
        Ok(i) => println!(
            "{name}: mode={} bpf={} cookies={} handshakes={} queued={} on={} standby={} off={}",
            i.mode, i.by_bpf() as u32, i.cookies() as u32, i.handshakes, i.queued, i.group_on, i.group_standby, i.group_off
        ),
    }
}

fn run(drain: &mut Drain) -> usize {
    let mut accepted = 0;
    loop {
        let step = drain.step().expect("step");
        match step.action {
            Action::Done => return accepted,
            Action::AcceptMore => accepted += step.fds.iter().map(|&fd| accept_all(fd)).sum::<usize>(),
            Action::Wait => std::thread::sleep(step.wait),
        }
    }
}

fn start<L: Into<OwnedFd>>(name: &str, drain: &mut Drain, listener: L) -> bool {
    let result = drain.add(listener).map_err(|rejected| rejected.error).and_then(|()| drain.start());
    let ok = result.is_ok();
    print_result(&format!("{name}, start"), result);
    ok
}

fn names() {
    for i in 0..8 {
        println!("support {i}: {}", reuseport::Support(i));
    }
    for i in 0..12 {
        println!("outcome {i}: {}", reuseport::Outcome(i));
    }
    for i in 0..7 {
        println!("method {i}: {}", reuseport::Method(i));
    }
    for i in 0..134 {
        if !reuseport::hint(i).is_empty() {
            println!("hint {i}: {}", reuseport::hint(i));
        }
    }
}

fn options() {
    let (support, why) = reuseport::probe();
    println!("probe: {support}, {why}");
    let (support, why) = reuseport::probe_behaviour(8);
    println!("behaviour: {support}, {why}");
    let (one, _other) = pair(0);
    let fd = one.as_raw_fd();
    print_mode("on", fd);
    print_result("set off", reuseport::set_mode(fd, reuseport::OFF));
    print_mode("off", fd);
    print_result("set standby", reuseport::set_mode(fd, reuseport::STANDBY));
    print_mode("standby", fd);
    print_result("set nothing", reuseport::set_mode(fd, 77));
    print_mode("still standby", fd);
    print_result("set on", reuseport::set_mode(fd, reuseport::ON));
    let (local, _peer) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    print_result("unix", reuseport::set_mode(local.as_raw_fd(), reuseport::OFF));
    print_result("no socket", reuseport::set_mode(-1, reuseport::OFF));
    let cases = [(2, 1, 0, 1), (2, 1, 1, 1), (2, 1, 0, 0), (1, 1, 0, 0), (1, 3, 0, 0)];
    let drained = cases.iter().map(|&(mode, flags, queued, group_on)| {
        let info = reuseport::Info { mode, flags, queued, group_on, ..Default::default() };
        format!(" {}", info.drained() as u32)
    });
    println!("drained:{}", drained.collect::<String>());
}

fn newcomer() {
    let (old, fresh) = pair(3);
    let mut drain = Drain::new(&Options::default()).unwrap();
    print_report("newcomer, before", &drain);
    if start("newcomer", &mut drain, old) {
        print_report("newcomer, running", &drain);
        println!("newcomer, accepted: {}", run(&mut drain));
        print_report("newcomer", &drain);
        match drain.error() {
            Some(error) => print_error("newcomer, why", &error),
            None => println!("newcomer, why: ok"),
        }
        println!("newcomer, again: {}", drain.step().unwrap().action as u32);
    }
    drop(drain);
    dial(fresh.local_addr().unwrap(), 2);
    println!("newcomer, next: {}", accept_all(fresh.as_raw_fd()));
}

fn alone(name: &str, options: Options) {
    let old = open();
    dial(old.local_addr().unwrap(), 1);
    let mut drain = Drain::new(&options).unwrap();
    if start(name, &mut drain, old) {
        println!("{name}, accepted: {}", run(&mut drain));
        print_report(name, &drain);
    }
}

fn undo() {
    let (old, fresh) = pair(0);
    let (fd, at) = (old.as_raw_fd(), old.local_addr().unwrap());
    let mut drain = Drain::new(&Options { policy: Policy::Require, ..Default::default() }).unwrap();
    if let Err(error) = drain.undo() {
        assert_eq!(error.errno, ESTALE);
        println!("undo too early: undo|{}|", error.errno);
    }
    if start("undo", &mut drain, old) {
        print_mode("undo, meanwhile", fd);
        drain.undo().expect("undo");
        println!("undo, done: 0");
        print_report("undo", &drain);
    }
    let back = drain.take_back();
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].as_raw_fd(), fd);
    print_mode("undo, afterwards", fd);
    drop(fresh);
    dial(at, 1);
    println!("undo, serves: {}", accept_all(fd));
}

fn keep() {
    let (old, _fresh) = pair(2);
    let fd = old.as_raw_fd();
    let options =
        Options { accept: false, at_deadline: AtDeadline::Keep, timeout: Duration::from_millis(50), ..Default::default() };
    let mut drain = Drain::new(&options).unwrap();
    if start("keep", &mut drain, old) {
        println!("keep, accepted: {}", run(&mut drain));
        print_report("keep", &drain);
        print_mode("keep, afterwards", fd);
    }
}

fn shared(name: &str, answer: Result<bool, i32>) {
    let (old, _fresh) = pair(0);
    let fd = old.as_raw_fd();
    let options = Options { policy: Policy::Require, ..Default::default() };
    let is_shared = Box::new(move |asked| {
        assert_eq!(asked, fd);
        answer
    });
    let mut drain = Drain::with_is_shared(&options, is_shared).unwrap();
    if start(name, &mut drain, old) {
        print_report(name, &drain);
    }
    let _back = drain.take_back();
    print_mode(name, fd);
}

fn wrong() {
    let (local, _peer) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    let mut drain = Drain::new(&Options::default()).unwrap();
    if let Err(error) = drain.step() {
        print_error("step too early", &error);
    }
    if let Err(error) = drain.start() {
        print_error("start with nothing", &error);
    }
    if let Err(rejected) = drain.add(local) {
        print_error("add unix", &rejected.error);
    }
    let old = open();
    let fd = old.as_raw_fd();
    drain.add(old).expect("add");
    // Not this one: two owners of one descriptor.
    if let Err(rejected) = drain.add(unsafe { OwnedFd::from_raw_fd(fd) }) {
        let _ = rejected.listener.into_raw_fd();
        print_error("add again", &rejected.error);
    }
    if let Err(error) = drain.listener(1) {
        println!("no listener: {}", error.errno);
    }
    drop(drain);
    assert!(reuseport::get_info(fd).is_err(), "the listener of a drain that is dropped is closed");
    println!("bad option: 22"); // a Duration is never negative
}

fn udp() {
    let old = reuseport::bind_udp("127.0.0.1:0".parse().unwrap()).expect("bind");
    let _fresh = reuseport::bind_udp(old.local_addr().unwrap()).expect("bind beside");
    let options = Options { policy: Policy::Require, timeout: Duration::from_millis(300), ..Default::default() };
    let mut drain = Drain::new(&options).unwrap();
    if start("udp", &mut drain, old) {
        run(&mut drain);
        print_report("udp", &drain);
        match drain.error() {
            Some(error) => print_error("udp, why", &error),
            None => println!("udp, why: ok"),
        }
    }
}

fn main() {
    println!("version: {}", reuseport::version());
    names();
    options();
    newcomer();
    alone("alone", Options::default());
    alone("leave", Options { last_on: LastOn::Leave, ..Default::default() });
    alone("close", Options { policy: Policy::CloseOnly, ..Default::default() });
    undo();
    keep();
    shared("shared", Ok(true));
    shared("shared, unknown", Err(EIO));
    wrong();
    udp();
    println!("end");
}
