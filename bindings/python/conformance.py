# SPDX-License-Identifier: Apache-2.0
"""The cases of ../c/conformance.c by reuseport.py; must print the same."""

import errno
import socket
import sys
import time

import reuseport

CLIENTS = []


def open_socket(kind=socket.SOCK_STREAM, at=("127.0.0.1", 0)):
    opened = socket.socket(socket.AF_INET, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(at)
    if kind == socket.SOCK_STREAM:
        opened.listen(16)
    opened.setblocking(False)
    return opened


def pair(kind=socket.SOCK_STREAM, clients=0):
    old = open_socket(kind)
    dial(old.getsockname(), clients)
    return old, open_socket(kind, old.getsockname())


def dial(to, number):
    for _ in range(number):
        CLIENTS.append(socket.create_connection(to))


def accept_all(listener):
    number = 0
    try:
        while True:
            CLIENTS.append(listener.accept()[0])
            number += 1
    except BlockingIOError:
        return number


def print_error(name, error):
    print(f"{name}: {error.call}|{error.errno}|{error.hint}" if error else f"{name}: ok")


def attempt(name, call, *arguments):
    """Whether it went well; says so."""
    try:
        call(*arguments)
    except reuseport.Error as error:
        print_error(name, error)
        return False
    print(f"{name}: ok")
    return True


def expect_error(name, call, *arguments):
    try:
        call(*arguments)
    except reuseport.Error as error:
        print_error(name, error)


def count(number):
    return "-" if number is None else number


def print_report(name, drain):
    r = drain.report
    print(f"{name}: outcome={r.outcome} method={r.method} support={r.support} lossless={r.lossless:d} "
          f"timed_out={r.timed_out:d} listeners={r.listeners} handshakes={count(r.handshakes)} queued={count(r.queued)}")
    for index in range(r.listeners):
        l = drain.listener(index)
        print(f"{name}, listener {index}: outcome={l.outcome} method={l.method} before={l.before} "
              f"handshakes={count(l.handshakes)} queued={count(l.queued)} group_on={l.group_on} error={l.error} "
              f"open={l.open:d}")


def print_mode(name, listener):
    try:
        i = reuseport.get_info(listener)
    except reuseport.Error as error:
        print_error(name, error)
        return
    print(f"{name}: mode={i.mode} bpf={i.by_bpf:d} cookies={i.cookies:d} handshakes={i.handshakes} queued={i.queued} "
          f"on={i.group_on} standby={i.group_standby} off={i.group_off}")


def run(drain, listener):
    accepted = 0
    while True:
        step = drain.step()
        if step.action == reuseport.DONE:
            return accepted
        if step.action == reuseport.ACCEPT_MORE:
            assert step.fds == (listener.fileno(),)
            accepted += accept_all(listener)
        else:
            time.sleep(step.wait)


def start(name, drain, listener):
    def both():
        drain.add(listener)
        drain.start()
    return attempt(f"{name}, start", both)


def names():
    lib = reuseport._lib
    for i in range(8):
        print(f"support {i}: {lib.reuseport_support_name(i).decode()}")
    for i in range(12):
        print(f"outcome {i}: {lib.reuseport_outcome_name(i).decode()}")
    for i in range(7):
        print(f"method {i}: {lib.reuseport_method_name(i).decode()}")
    for i in range(134):
        if reuseport.hint(i):
            print(f"hint {i}: {reuseport.hint(i)}")


def options():
    for name, found in (("probe", reuseport.probe()), ("behaviour", reuseport.probe_behaviour(8))):
        print(f"{name}: {found.support}, {found.why}")
    one, other = pair()
    print_mode("on", one)
    attempt("set off", reuseport.set_mode, one, reuseport.OFF)
    print_mode("off", one)
    attempt("set standby", reuseport.set_mode, one, reuseport.STANDBY)
    print_mode("standby", one)
    attempt("set nothing", reuseport.set_mode, one, 77)
    print_mode("still standby", one)
    attempt("set on", reuseport.set_mode, one, reuseport.ON)
    with socket.socket(socket.AF_UNIX) as local:
        attempt("unix", reuseport.set_mode, local, reuseport.OFF)
    attempt("no socket", reuseport.set_mode, -1, reuseport.OFF)
    one.close()
    other.close()
    cases = ((reuseport.STANDBY, 1, 0, 1), (reuseport.STANDBY, 1, 1, 1), (reuseport.STANDBY, 1, 0, 0),
             (reuseport.OFF, 1, 0, 0), (reuseport.OFF, 3, 0, 0))
    print("drained:", *(int(reuseport.Info(mode, flags, 0, queued, 0, on, 0, 0).drained)
                        for mode, flags, queued, on in cases))


def newcomer():
    old, fresh = pair(clients=3)
    with reuseport.Drain() as drain:
        print_report("newcomer, before", drain)
        if start("newcomer", drain, old):
            print_report("newcomer, running", drain)
            print(f"newcomer, accepted: {run(drain, old)}")
            print_report("newcomer", drain)
            print_error("newcomer, why", drain.error)
            print(f"newcomer, again: {drain.step().action}")
            assert old.fileno() == -1, "closed by the drain, through the socket"
    dial(fresh.getsockname(), 2)
    print(f"newcomer, next: {accept_all(fresh)}")
    fresh.close()


def alone(name, **options):
    old = open_socket()
    dial(old.getsockname(), 1)
    with reuseport.Drain(**options) as drain:
        if start(name, drain, old):
            print(f"{name}, accepted: {run(drain, old)}")
            print_report(name, drain)
    old.close()


def undo():
    old, fresh = pair()
    with reuseport.Drain(policy=reuseport.REQUIRE) as drain:
        try:
            drain.undo()
        except reuseport.Error as error:
            assert error.errno == errno.ESTALE
            print(f"undo too early: undo|{error.errno}|")
        if start("undo", drain, old):
            print_mode("undo, meanwhile", old)
            drain.undo()
            print("undo, done: 0")
            print_report("undo", drain)
    print_mode("undo, afterwards", old)
    fresh.close()
    dial(old.getsockname(), 1)
    print(f"undo, serves: {accept_all(old)}")
    old.close()


def keep():
    old, fresh = pair(clients=2)
    with reuseport.Drain(accept=False, at_deadline=reuseport.DEADLINE_KEEP, timeout=0.05) as drain:
        if start("keep", drain, old):
            print(f"keep, accepted: {run(drain, old)}")
            print_report("keep", drain)
            print_mode("keep, afterwards", old)
    old.close()
    fresh.close()


def shared(name, answer):
    old, fresh = pair()

    def is_shared(listener):
        assert listener is old
        if isinstance(answer, OSError):
            raise answer
        return answer

    with reuseport.Drain(policy=reuseport.REQUIRE, is_shared=is_shared) as drain:
        if start(name, drain, old):
            print_report(name, drain)
    print_mode(name, old)
    old.close()
    fresh.close()


def wrong():
    old, local = open_socket(), socket.socket(socket.AF_UNIX)
    with reuseport.Drain() as drain:
        expect_error("step too early", drain.step)
        expect_error("start with nothing", drain.start)
        expect_error("add unix", drain.add, local)
        expect_error("add", drain.add, old)
        expect_error("add again", drain.add, old)
        try:
            drain.listener(1)
        except reuseport.Error as error:
            print(f"no listener: {error.errno}")
        try:
            reuseport.Drain(timeout=-1)
        except reuseport.Error as error:
            print(f"bad option: {error.errno}")
    assert old.fileno() >= 0, "a drain that is not started closes nothing"
    old.close()
    local.close()


def udp():
    old, fresh = pair(socket.SOCK_DGRAM)
    with reuseport.Drain(policy=reuseport.REQUIRE, timeout=0.3) as drain:
        if start("udp", drain, old):
            run(drain, old)
            print_report("udp", drain)
            print_error("udp, why", drain.error)
    old.close()
    fresh.close()


print(f"version: {reuseport.version()}")
names()
options()
newcomer()
alone("alone")
alone("leave", last_on=reuseport.LAST_LEAVE)
alone("close", policy=reuseport.CLOSE_ONLY)
undo()
keep()
shared("shared", True)
shared("shared, unknown", OSError(errno.EIO, "cannot tell"))
wrong()
udp()
print("end")
sys.stdout.flush()
