// SPDX-License-Identifier: Apache-2.0

// The cases of ../../c/conformance.c by reuseport.go; must print the same.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"reuseport.invalid/reuseport"
)

var clients []net.Conn

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func listenAt(address string) *net.TCPListener {
	listener, err := reuseport.Listen(context.Background(), "tcp4", address)
	must(err)
	return listener
}

func pair(queued int) (*net.TCPListener, *net.TCPListener) {
	old := listenAt("127.0.0.1:0")
	dial(old.Addr(), queued)
	return old, listenAt(old.Addr().String())
}

func dial(to net.Addr, number int) {
	for i := 0; i < number; i++ {
		client, err := net.Dial("tcp", to.String())
		must(err)
		clients = append(clients, client)
	}
}

// A deadline that is over says so before it looks: so a short one.
func acceptAll(listener *net.TCPListener) (number int) {
	for ; ; number++ {
		must(listener.SetDeadline(time.Now().Add(20 * time.Millisecond)))
		client, err := listener.Accept()
		if err != nil {
			return
		}
		clients = append(clients, client)
	}
}

func fd(conn syscall.Conn) int {
	number, err := reuseport.FD(conn)
	must(err)
	return number
}

func printError(name string, err error) {
	var failed *reuseport.Error
	if errors.As(err, &failed) {
		fmt.Printf("%s: %s|%d|%s\n", name, failed.Call, int(failed.Errno), failed.Hint)
		return
	}
	must(err)
	fmt.Printf("%s: ok\n", name)
}

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func count(number uint32) string {
	if number == reuseport.Unknown {
		return "-"
	}
	return fmt.Sprint(number)
}

func printReport(name string, drain *reuseport.Drain) {
	r := drain.Report()
	fmt.Printf("%s: outcome=%v method=%v support=%v lossless=%d timed_out=%d listeners=%d handshakes=%s queued=%s\n", name,
		r.Outcome, r.Method, r.Support, number(r.Lossless), number(r.TimedOut), r.Listeners, count(r.Handshakes), count(r.Queued))
	for i := 0; i < r.Listeners; i++ {
		l, err := drain.Listener(i)
		must(err)
		fmt.Printf("%s, listener %d: outcome=%v method=%v before=%d handshakes=%s queued=%s group_on=%d error=%d open=%d\n", name,
			i, l.Outcome, l.Method, l.Before, count(l.Handshakes), count(l.Queued), l.GroupOn, int(l.Errno), number(l.Open))
	}
}

func printMode(name string, fd int) {
	i, err := reuseport.GetInfo(fd)
	if err != nil {
		printError(name, err)
		return
	}
	fmt.Printf("%s: mode=%d bpf=%d cookies=%d handshakes=%d queued=%d on=%d standby=%d off=%d\n", name, i.Mode,
		number(i.ByBPF()), number(i.Cookies()), i.Handshakes, i.Queued, i.GroupOn, i.GroupStandby, i.GroupOff)
}

func run(drain *reuseport.Drain) (accepted int) {
	for {
		step, err := drain.Step()
		must(err)
		switch step.Action {
		case reuseport.Done:
			return
		case reuseport.AcceptMore:
			for _, listener := range step.Listeners {
				accepted += acceptAll(listener.(*net.TCPListener))
			}
		case reuseport.Wait:
			time.Sleep(step.Wait)
		}
	}
}

func start(name string, drain *reuseport.Drain, listener reuseport.Listener) bool {
	err := drain.Add(listener)
	if err == nil {
		err = drain.Start()
	}
	printError(name+", start", err)
	return err == nil
}

func makeDrain(options reuseport.Options) *reuseport.Drain {
	drain, err := reuseport.New(options)
	must(err)
	return drain
}

func names() {
	for i := reuseport.Support(0); i < 8; i++ {
		fmt.Printf("support %d: %v\n", uint32(i), i)
	}
	for i := reuseport.Outcome(0); i < 12; i++ {
		fmt.Printf("outcome %d: %v\n", uint32(i), i)
	}
	for i := reuseport.Method(0); i < 7; i++ {
		fmt.Printf("method %d: %v\n", uint32(i), i)
	}
	for i := syscall.Errno(0); i < 134; i++ {
		if hint := reuseport.Hint(i); hint != "" {
			fmt.Printf("hint %d: %s\n", uint32(i), hint)
		}
	}
}

func options() {
	support, why := reuseport.Probe()
	fmt.Printf("probe: %v, %s\n", support, why)
	support, why = reuseport.ProbeBehaviour(8)
	fmt.Printf("behaviour: %v, %s\n", support, why)
	one, other := pair(0)
	printMode("on", fd(one))
	printError("set off", reuseport.SetMode(fd(one), reuseport.Off))
	printMode("off", fd(one))
	printError("set standby", reuseport.SetMode(fd(one), reuseport.Standby))
	printMode("standby", fd(one))
	printError("set nothing", reuseport.SetMode(fd(one), 77))
	printMode("still standby", fd(one))
	printError("set on", reuseport.SetMode(fd(one), reuseport.On))
	local, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(err)
	printError("unix", reuseport.SetMode(local, reuseport.Off))
	printError("no socket", reuseport.SetMode(-1, reuseport.Off))
	syscall.Close(local)
	one.Close()
	other.Close()
	fmt.Print("drained:")
	for _, info := range []reuseport.Info{
		{Mode: reuseport.Standby, Flags: 1, GroupOn: 1},
		{Mode: reuseport.Standby, Flags: 1, GroupOn: 1, Queued: 1},
		{Mode: reuseport.Standby, Flags: 1},
		{Mode: reuseport.Off, Flags: 1},
		{Mode: reuseport.Off, Flags: 3},
	} {
		fmt.Printf(" %d", number(info.Drained()))
	}
	fmt.Println()
}

func newcomer() {
	old, fresh := pair(3)
	drain := makeDrain(reuseport.Options{})
	printReport("newcomer, before", drain)
	if start("newcomer", drain, old) {
		printReport("newcomer, running", drain)
		fmt.Printf("newcomer, accepted: %d\n", run(drain))
		printReport("newcomer", drain)
		printError("newcomer, why", drain.Err())
		step, err := drain.Step()
		must(err)
		fmt.Printf("newcomer, again: %d\n", step.Action)
		if err := old.Close(); !errors.Is(err, net.ErrClosed) {
			must(fmt.Errorf("the drain did not close the listener itself: %v", err))
		}
	}
	drain.Free()
	dial(fresh.Addr(), 2)
	fmt.Printf("newcomer, next: %d\n", acceptAll(fresh))
	fresh.Close()
}

func alone(name string, options reuseport.Options) {
	old := listenAt("127.0.0.1:0")
	dial(old.Addr(), 1)
	drain := makeDrain(options)
	if start(name, drain, old) {
		fmt.Printf("%s, accepted: %d\n", name, run(drain))
		printReport(name, drain)
	}
	drain.Free()
	old.Close()
}

func undo() {
	old, fresh := pair(0)
	drain := makeDrain(reuseport.Options{Policy: reuseport.Require})
	if err := drain.Undo(); errors.Is(err, syscall.ESTALE) {
		fmt.Printf("undo too early: undo|%d|\n", int(syscall.ESTALE))
	}
	if start("undo", drain, old) {
		printMode("undo, meanwhile", fd(old))
		must(drain.Undo())
		fmt.Println("undo, done: 0")
		printReport("undo", drain)
	}
	drain.Free()
	printMode("undo, afterwards", fd(old))
	fresh.Close()
	dial(old.Addr(), 1)
	fmt.Printf("undo, serves: %d\n", acceptAll(old))
	old.Close()
}

func keep() {
	old, fresh := pair(2)
	drain := makeDrain(reuseport.Options{NoAccept: true, AtDeadline: reuseport.DeadlineKeep, Timeout: 50 * time.Millisecond})
	if start("keep", drain, old) {
		fmt.Printf("keep, accepted: %d\n", run(drain))
		printReport("keep", drain)
		printMode("keep, afterwards", fd(old))
	}
	drain.Free()
	old.Close()
	fresh.Close()
}

func shared(name string, answer bool, unknown error) {
	old, fresh := pair(0)
	drain := makeDrain(reuseport.Options{Policy: reuseport.Require, IsShared: func(asked int) (bool, error) {
		if asked != fd(old) {
			must(fmt.Errorf("asked for descriptor %d", asked))
		}
		return answer, unknown
	}})
	if start(name, drain, old) {
		printReport(name, drain)
	}
	drain.Free()
	printMode(name, fd(old))
	old.Close()
	fresh.Close()
}

func wrong() {
	old := listenAt("127.0.0.1:0")
	local, err := net.Listen("unix", "@reuseport-conformance")
	must(err)
	drain := makeDrain(reuseport.Options{})
	if _, err := drain.Step(); err != nil {
		printError("step too early", err)
	}
	if err := drain.Start(); err != nil {
		printError("start with nothing", err)
	}
	if err := drain.Add(local.(*net.UnixListener)); err != nil {
		printError("add unix", err)
	}
	must(drain.Add(old))
	if err := drain.Add(old); err != nil {
		printError("add again", err)
	}
	var failed *reuseport.Error
	if _, err := drain.Listener(1); errors.As(err, &failed) {
		fmt.Printf("no listener: %d\n", int(failed.Errno))
	}
	if _, err := reuseport.New(reuseport.Options{Timeout: -1}); errors.As(err, &failed) {
		fmt.Printf("bad option: %d\n", int(failed.Errno))
	}
	drain.Free()
	drain.Free()
	must(old.Close())
	local.Close()
}

func udp() {
	config := reuseport.Config()
	open := func(address string) *net.UDPConn {
		conn, err := config.ListenPacket(context.Background(), "udp4", address)
		must(err)
		return conn.(*net.UDPConn)
	}
	old := open("127.0.0.1:0")
	fresh := open(old.LocalAddr().String())
	drain := makeDrain(reuseport.Options{Policy: reuseport.Require, Timeout: 300 * time.Millisecond})
	if start("udp", drain, old) {
		run(drain)
		printReport("udp", drain)
		printError("udp, why", drain.Err())
	}
	drain.Free()
	old.Close()
	fresh.Close()
}

func main() {
	fmt.Printf("version: %s\n", reuseport.Version())
	names()
	options()
	newcomer()
	alone("alone", reuseport.Options{})
	alone("leave", reuseport.Options{LastOn: reuseport.LastLeave})
	alone("close", reuseport.Options{Policy: reuseport.CloseOnly})
	undo()
	keep()
	shared("shared", true, nil)
	shared("shared, unknown", false, syscall.EIO)
	wrong()
	udp()
	fmt.Println("end")
}
