package requests

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain is also the programs that Run starts.
func TestMain(m *testing.M) {
	if inside, err := Inside(context.Background(), os.Args[1:], os.Stdout); inside {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRun runs each load for a moment: every proxy answers every request.
func TestRun(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newCores(); err != nil {
		t.Skip("skipped: ", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := Run(ctx, Config{Self: self, Rounds: 1, Duration: 300 * time.Millisecond, Connections: 50}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range r.Loads {
		for _, proxy := range []string{Waypoint, Reverse} {
			s := r.Sums[l.Name()][proxy]
			if s == nil || s.Requests == 0 || s.Failed > 0 || len(s.P50) != 1 || s.P99[0] < s.P50[0] || s.P50[0] == 0 {
				t.Errorf("%s through %s: %+v", l.Name(), proxy, s)
			}
		}
	}
	for _, proxy := range []string{Waypoint, Reverse} {
		if m := r.Memory[proxy]; m.Idle == 0 || m.Many[HTTP1] == 0 || m.Many[HTTP2] == 0 {
			t.Errorf("memory of %s: %+v", proxy, m)
		}
	}
	var table strings.Builder
	if err := r.Write(&table); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "HTTP/2, 4 connections of 16 streams") || r.Failed() > 0 {
		t.Errorf("%s", table.String())
	}
}

// TestFailures counts what a proxy does wrong.
func TestFailures(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, l := range (Config{Duration: 10 * time.Second}).loads() {
		l.Addr = "127.0.0.1:1" // nobody
		if got := l.Run(ctx); got.Failed != uint64(l.Connections) || got.Requests > 0 || got.FirstError == "" {
			t.Errorf("%s: %+v", l.Name(), got)
		}
	}
}
