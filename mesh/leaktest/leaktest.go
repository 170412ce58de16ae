// Package leaktest fails tests that leave goroutines or sockets behind. What is on its way out when a test ends gets time, since a
// machine may have other work: goleak alone gives it less than half a second. Only tests import it.
package leaktest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long what a test leaves may take to end.
const patience = 30 * time.Second

// Main runs a package's tests and exits; for TestMain. It fails if goroutines are left, but for those that are ignored.
func Main(m *testing.M, ignored ...goleak.Option) {
	os.Exit(verdict(m.Run(), func() error { return goleak.Find(ignored...) }))
}

// MainWithSockets is Main that wants the sockets back, too.
func MainWithSockets(m *testing.M, ignored ...goleak.Option) {
	before := sockets()
	os.Exit(verdict(m.Run(), func() error {
		if now := sockets(); now > before {
			return fmt.Errorf("%d sockets are open, %d were before the tests", now, before)
		}
		return goleak.Find(ignored...)
	}))
}

// verdict is the exit code of tests that ended with code.
func verdict(code int, clean func() error) int {
	if code != 0 {
		return code // what failed may have left anything
	}
	if err := eventually(patience, clean); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Check fails the test if goroutines are left, but for those that are ignored; as goleak.VerifyNone does.
func Check(t testing.TB, ignored ...goleak.Option) {
	t.Helper()
	check(t, patience, ignored)
}

func check(t testing.TB, limit time.Duration, ignored []goleak.Option) {
	t.Helper()
	if err := eventually(limit, func() error { return goleak.Find(ignored...) }); err != nil {
		t.Error(err)
	}
}

// eventually tries until there is no error or the limit is reached, and returns the last error.
func eventually(limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// sockets counts those that this process has open.
func sockets() int {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, f := range files {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}
