package scenarios

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// badInput: what makes no sense is refused, at once, and nobody else notices.
func badInput() scenario {
	const ns = "ambit-badinput"
	return scenario{
		name: "11-bad-input", manifest: "badinput.yaml", namespaces: []string{ns},
		tell: func(t *testing.T, w *world) {
			w.must(t, w.awaitQuartet(ns))
			l := w.load(t, "beside bad input", 20, 10)
			for _, client := range []string{"client1", "client2"} {
				w.expect(t, []expectation{{from: harness.Pod{Namespace: ns, Name: client}, host: w.clusterIPs(t, ns, "nobody")[0], what: "a service without endpoints", refused: true}})
			}
			agent, err := w.PodOn(w.ctx, "node2", api.DefaultNamespace, harness.Agent().Selector())
			w.must(t, err)
			from, err := w.Inside(w.ctx, harness.Pod{Namespace: agent.Namespace, Name: agent.Name})
			w.must(t, err)
			victim := w.ips(t, harness.Pod{Namespace: ns, Name: "server1"})[0].String()
			var wg sync.WaitGroup
			wg.Go(func() { w.garbage(t, from, target(victim, api.PortHBONE)) })
			w.badRequests(t, from, victim)
			wg.Wait()
			l.stop(t, "load beside bad input", limits{})
		},
	}
}

// awaitQuartet waits until the quartet is captured; the odd pod beside it need not be.
func (w *world) awaitQuartet(ns string) error {
	return w.AwaitCapturedPods(w.ctx, ns, "group=quartet", captured)
}

// garbage on the port for tunnels is answered by the end of the connection, and so is silence.
func (w *world) garbage(t *testing.T, from dialer, addr string) {
	var wg sync.WaitGroup
	for name, bytes := range map[string]string{
		"nothing":            "",
		"HTTP/1.1":           "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/2 in clear":    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"zeros":              strings.Repeat("\x00", 4096),
		"half a ClientHello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"an endless record":  "\x16\x03\x01\xff\xff" + strings.Repeat("A", 70000),
	} {
		wg.Go(func() {
			conn, err := from.DialContext(w.ctx, "tcp", addr)
			if err != nil {
				t.Errorf("%s on the port for tunnels: %v", name, err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, _ = io.WriteString(conn, bytes) // the server may have closed already
			if _, err := io.Copy(io.Discard, conn); traffic.KindOf(err) == traffic.KindTimeout {
				t.Errorf("%s on the port for tunnels: the connection is still open after a minute", name)
			}
		})
	}
	wg.Wait()
}

// badRequests are refused, on a connection that goes on to serve a good one or else ends.
func (w *world) badRequests(t *testing.T, from dialer, victim string) {
	t.Helper()
	cert := w.meshAuthority(t).issue(t, "spiffe://cluster.local/ns/ambit-badinput/sa/client")
	addr, good := target(victim, api.PortHBONE), target(victim, traffic.PortEcho)
	line := traffic.Marker + " good\n"
	for _, bad := range []struct {
		what, authority string
		header          http.Header
	}{
		{"authority without a port", victim, nil},
		{"authority without a host", ":9000", nil},
		{"authority with port 0", target(victim, 0), nil},
		{"authority with a port too large", victim + ":99999", nil},
		{"authority that is no address", "no such host:9000", nil},
		{"authority of a service that does not exist", "nowhere.ambit-badinput.svc.cluster.local:9000", nil},
		{"authority of 20 KiB", strings.Repeat("x", 20<<10) + ":9000", nil},
		{"header of 256 KiB", good, http.Header{"Baggage": {strings.Repeat("k=v,", 64<<10)}}},
		{"a thousand headers", good, manyHeaders(1000)},
	} {
		h, err := openTunnel(w.ctx, from, addr, cert)
		if err != nil {
			t.Errorf("before %s: %v", bad.what, err)
			continue
		}
		status, _, err := h.connect(w.ctx, bad.authority, bad.header, line)
		if status == http.StatusOK && err == nil && bad.what != "a thousand headers" {
			t.Errorf("%s: it worked, want it refused", bad.what)
		}
		if traffic.KindOf(err) == traffic.KindTimeout {
			t.Errorf("%s: no answer: %v", bad.what, err)
		}
		h.close()
		status, back, err := attempt(w.ctx, from, addr, cert, good, line)
		if err != nil || status != http.StatusOK || back != line {
			t.Errorf("after %s a good request got status %d, %q, %v", bad.what, status, back, err)
		}
	}
}

func manyHeaders(n int) http.Header {
	header := http.Header{}
	for i := range n {
		header.Set(fmt.Sprintf("X-Header-%d", i), "value")
	}
	return header
}
