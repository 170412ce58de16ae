package codec

import (
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// TestH2Spec runs the conformance tests of h2spec, which tools/go.mod pins, against a server.
func TestH2Spec(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a tool and runs for some seconds")
	}
	tool := filepath.Join(t.TempDir(), "h2spec")
	build := exec.Command("go", "-C", "../../tools", "build", "-o", tool, "github.com/summerwind/h2spec/cmd/h2spec")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build h2spec: %v\n%s", err, out)
	}
	s := serve(t, &ServerConfig{HTTP2Only: true}, func(x *Exchange) {
		var all []byte
		if b := x.Request.Body; b != nil {
			defer b.Close()
			for {
				p, err := b.Next()
				if err != nil {
					break
				}
				all = append(all, p...)
			}
		}
		all = append(all, "an answer"...)
		_ = x.Respond(&message.Response{Status: 200, Body: message.Bytes(all, nil), Length: int64(len(all))})
	})
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "--strict", "--host", "127.0.0.1", "--port", port, "--timeout", "30").CombinedOutput()
	if err != nil || !strings.Contains(string(out), " 0 failed") {
		t.Errorf("h2spec: %v\n%s", err, out)
	}
}
