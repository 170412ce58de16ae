package proxy

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain wants goroutines and sockets back when all tests are done.
func TestMain(m *testing.M) {
	before := openSockets()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for until := time.Now().Add(5 * time.Second); code == 0 && openSockets() > before; <-tick.C {
			if time.Now().After(until) {
				fmt.Fprintf(os.Stderr, "%d sockets are open, %d were before the tests\n", openSockets(), before)
				code = 1
			}
		}
		os.Exit(code)
	}))
}

// openSockets counts this process's.
func openSockets() int {
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
