// SPDX-License-Identifier: Apache-2.0
//! A server of std::net, a thread for each connection, that retires its listener on SIGTERM: server PORT
//!
//! Start a second one on the same port, then end the first: no client notices. Exit code: 0 nothing was lost, 3 it may
//! have been (no option here), 1 the server failed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::raw::{c_int, c_short, c_ulong};
use std::os::unix::io::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

#[path = "reuseport.rs"]
mod reuseport;

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
}

fn serve(mut client: TcpStream) {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match client.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend_from_slice(&part[..n]),
        }
    }
    let body = format!("pid {}\n", std::process::id());
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(body.as_bytes()));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const SIGTERM: c_int = 15;
    const POLLIN: c_short = 1;
    let port: u16 = std::env::args().nth(1).ok_or("usage: server PORT")?.parse()?;
    let mut listener = reuseport::listen(([127, 0, 0, 1], port).into(), 128)?;
    unsafe { signal(SIGTERM, on_signal) };

    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let report = loop {
        let mut look = PollFd { fd: listener.as_raw_fd(), events: POLLIN, revents: 0 };
        // A signal ends the wait, or comes just before it: so not without end.
        unsafe { poll(&mut look, 1, 100) };
        while let Ok((client, _)) = listener.accept() {
            threads.push(std::thread::spawn(move || serve(client)));
        }
        threads.retain(|thread| !thread.is_finished());
        if !ASKED.swap(false, Ordering::SeqCst) {
            continue;
        }
        let mut drain = reuseport::Drain::new(&reuseport::Options::default())?;
        drain.add(listener)?;
        let result = drain.run(|fd| {
            if let Ok(client) = reuseport::accept(fd) {
                threads.push(std::thread::spawn(move || serve(client)));
            }
        });
        match &result {
            Ok(report) => eprintln!("{} by {} ({})", report.outcome, report.method, report.support),
            Err(error) => eprintln!("{error}: serving on"),
        }
        // Not started, or undone because the newcomer is gone: it is given back.
        match (drain.take_back().pop(), result) {
            (Some(open), _) => listener = TcpListener::from(open),
            (None, Ok(report)) => break report,
            (None, Err(error)) => return Err(error.into()),
        }
    };
    for thread in threads {
        let _ = thread.join();
    }
    std::process::exit(if report.lossless { 0 } else { 3 });
}
