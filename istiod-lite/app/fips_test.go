package app

import (
	"context"
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// fipsOn is what tests with a control plane log in Go's FIPS 140-3 mode.
const fipsOn = "FIPS 140-3 mode: true"

func logFIPS(t *testing.T) {
	if fips140.Enabled() {
		t.Log(fipsOn)
	}
}

// The control plane starts in Go's FIPS 140-3 mode, signs, and serves node proxies. In the mode "only" whatever is not approved
// fails, or panics.
func TestFIPS(t *testing.T) {
	for _, mode := range []string{"on", "only"} {
		t.Run(mode, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestNodeProxyLibraries$", "-test.v", "-test.count=1", "-test.timeout=3m")
			cmd.Env = append(os.Environ(), "GODEBUG=fips140="+mode)
			out, err := cmd.CombinedOutput()
			if text := string(out); err != nil || !strings.Contains(text, fipsOn) || !strings.Contains(text, "--- PASS: TestNodeProxyLibraries") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
