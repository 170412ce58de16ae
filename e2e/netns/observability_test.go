package netns

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestFlagsOfFailures makes the failures that need a peer, a network or a control plane that is broken, and looks for their
// flags in the log and in the metrics. Those of policy, trust, egress and bounds are in the tests of these.
func TestFlagsOfFailures(t *testing.T) {
	w := newWorld(t)
	n := w.node("node1", "AMBIT_SETTINGS_TIMEOUT=1s", "AMBIT_CONNECT_TIMEOUT=1s")
	other := w.node("node2", "CA_ADDRESS=https://127.0.0.1:1", "AMBIT_HANDSHAKE_TIMEOUT=1s")
	client, nobody := w.captured(n, "client"), w.captured(other, "nobody")

	// It ends the handshake as it should, and then says nothing.
	mute := w.pod(n, "mute")
	cert, pool, err := w.Control.SignIdentity(mute.Identity())
	w.must(err)
	w.listen(mute, ":15008", func(c *net.TCPConn) {
		server := tls.Server(c, &tls.Config{
			Certificates: []tls.Certificate{*cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
			NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		})
		defer server.Close()
		server.SetDeadline(time.Now().Add(ioTimeout))
		io.Copy(io.Discard, server)
	})
	// Nobody has this address: what is sent there is lost.
	lost := w.pod(n, "lost").Workload(true)
	at := client.IPv4.As4()
	at[3] = 250
	lost.Addresses = [][]byte{at[:]}
	w.Control.SetAddresses(mute.Address(true), &workload.Address{Type: &workload.Address_Workload{Workload: lost}})
	w.settle()

	for _, tc := range []struct {
		flag     string
		from     *lab.Pod
		to       string
		reporter *lab.Proxy
	}{
		{"H2_HANDSHAKE_FAILURE", client, addr(mute, false, 8080), w.proxies[0]},
		{"NETWORK_POLICY", client, net.JoinHostPort(net.IP(at[:]).String(), "8080"), w.proxies[0]},
		{"IDENTITY_ERROR", nobody, addr(client, false, 8080), w.proxies[1]},
	} {
		// On a busy machine another step may take too long first.
		w.eventually("a refusal with the flag "+tc.flag, func() error {
			w.refused(tc.from, tc.to)
			if len(w.lines(tc.reporter, "istio_tcp_connections_failed_total", `response_flags="`+tc.flag+`"`, `source_workload="`+tc.from.Name+`"`)) == 0 {
				return errors.New("there are others only")
			}
			return nil
		})
		w.logged(tc.reporter, "scope=access", "response_flags="+tc.flag, "src.workload="+tc.from.Name, "error=")
	}
}

// TestFullLog has nobody read what a proxy logs: it serves, new pods too, and counts the lines that it dropped. It lives on when
// its reader has gone.
func TestFullLog(t *testing.T) {
	w := newWorld(t)
	n, err := w.AddNode("node1")
	w.must(err)
	unread, output, err := os.Pipe()
	w.must(err)
	defer unread.Close()
	defer output.Close()
	_, err = unix.FcntlInt(output.Fd(), unix.F_SETPIPE_SZ, 4096)
	w.must(err)
	n.Output = output
	p := w.start(n, "RUST_LOG=debug")
	client, server := w.captured(n, "client"), w.captured(n, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	dropped := func() float64 { return sum(w.get(p, 15020, "/metrics"), "ambit_log_lines_dropped_total", nil) }
	deadline := time.Now().Add(5 * patience)
	for dropped() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("no line was dropped: the log is read, or what fills it is too slow")
		}
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for range 50 {
					if _, err := call(client, addr(server, false, 8080), "hello"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		callers.Wait()
		if t.Failed() {
			return
		}
	}
	late := w.captured(n, "late")
	w.settle()
	before := dropped()
	w.expect(late, addr(server, false, 8080), late.IPv4)
	w.eventually("more dropped lines", func() error {
		if now := dropped(); now <= before {
			return fmt.Errorf("%v, before %v", now, before)
		}
		return nil
	})
	// It is read again: lines of what comes then are not lost.
	output.Close()
	after := w.captured(n, "after")
	w.settle()
	read := make(chan struct{})
	var reader sync.WaitGroup
	leave := func() {
		w.must(unread.SetReadDeadline(time.Unix(1, 0))) // ends it
		reader.Wait()
	}
	defer reader.Wait()
	defer unread.SetReadDeadline(time.Unix(1, 0))
	reader.Go(func() {
		lines, found := bufio.NewScanner(unread), false
		for lines.Scan() {
			if !found && strings.Contains(lines.Text(), "src.workload=after") {
				found = true
				close(read)
			}
		}
	})
	w.eventually("a line of what came later", func() error {
		w.expect(after, addr(server, false, 8080), after.IPv4)
		select {
		case <-read:
			return nil
		default:
			return errors.New("not read yet")
		}
	})
	// Its reader goes.
	leave()
	w.must(unread.Close())
	before = dropped()
	w.eventually("lines that could not be written", func() error {
		w.expect(after, addr(server, false, 8080), after.IPv4)
		if now := dropped(); now <= before {
			return fmt.Errorf("%v, before %v", now, before)
		}
		return nil
	})
}

// TestTraceID: both proxies of a tunnel log one id, and connections have different ones.
func TestTraceID(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.listen(server, ":8081", echo)
	w.settle()
	id := regexp.MustCompile(` trace_id=([0-9a-f]{32}) `)
	seen := map[string]bool{}
	for _, port := range []int{8080, 8081} {
		w.expect(client, addr(server, false, port), client.IPv4)
		at := fmt.Sprintf("dst.hbone_addr=%s ", addr(server, false, port))
		out := id.FindStringSubmatch(w.logged(w.proxies[0], "connection complete", at, "direction=outbound"))
		in := id.FindStringSubmatch(w.logged(w.proxies[1], "connection complete", at, "direction=inbound"))
		if out == nil || in == nil || out[1] != in[1] || seen[out[1]] {
			t.Errorf("port %d: the client's proxy says %q, the server's %q", port, out, in)
			continue
		}
		seen[out[1]] = true
	}
}
