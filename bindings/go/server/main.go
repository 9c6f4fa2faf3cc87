// SPDX-License-Identifier: Apache-2.0

// A net/http server that retires its listener on SIGTERM: server PORT
//
// Start a second one on the same port, then end the first: no client notices. Exit code: 0 nothing was lost, 3 it may
// have been (no option here), 1 the server failed.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"reuseport.invalid/reuseport"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: server PORT")
	}
	ctx := context.Background()
	listener, err := reuseport.Listen(ctx, "tcp4", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(answer, "pid %d\n", os.Getpid())
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		// The drain closes the listener; accepted connections are still served.
		if err := server.Serve(listener); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			log.Fatal(err)
		}
	}()

	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	for range asked {
		report, err := reuseport.Retire(ctx, reuseport.Options{}, listener)
		if err != nil {
			log.Printf("%v: serving on", err)
			continue
		}
		log.Printf("%v by %v (%v)", report.Outcome, report.Method, report.Support)
		if report.Outcome == reuseport.Undone {
			continue // the newcomer is gone
		}
		// Once Serve has returned, the server knows every accepted connection, and Shutdown waits for it.
		_ = listener.Close()
		<-served
		if err := server.Shutdown(ctx); err != nil { // waits for requests in progress
			log.Print(err)
		}
		if !report.Lossless {
			os.Exit(3)
		}
		return
	}
}
