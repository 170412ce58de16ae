package conntrack

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/cni/netnstest"
)

// TestConnectionsThatEndAtEnrolment: a connection ends just while the pod is enrolled, so that connection tracking sees
// its last segments alone. The next connection with the same addresses and ports goes to the proxy; it does not hang,
// and does not go out in clear.
func TestConnectionsThatEndAtEnrolment(t *testing.T) {
	const (
		acks = "iptables-nft -%s OUTPUT -p tcp --tcp-flags ALL ACK -j DROP"
		fins = "iptables-nft -%s OUTPUT -p tcp --tcp-flags FIN FIN -j DROP"
	)
	for name, c := range map[string]struct {
		out       bool   // the pod opened it
		firstEnd  string // who closes first
		hold      string // the rule that holds back what ends the connection
		exempt    bool   // it ends only after enrolment, and has been exempted
		waitState string // of the pod's socket, until the rule is taken away
	}{
		// The server's last acknowledgement is the first that is seen: it looks as if the server had opened the connection.
		"out, closed by the server": {out: true, firstEnd: "peer", hold: acks, waitState: "last-ack"},
		// The pod's last acknowledgement is.
		"in, closed by the server": {firstEnd: "pod", hold: fins, waitState: "fin-wait-2"},
		// Nothing but the last acknowledgement is to come when the connection is exempted.
		"out, exempted at its end": {out: true, firstEnd: "peer", hold: acks, waitState: "last-ack", exempt: true},
		"in, exempted at its end":  {firstEnd: "peer", hold: acks, waitState: "last-ack", exempt: true},
		"out, exempted half-way":   {out: true, firstEnd: "pod", hold: fins, waitState: "fin-wait-2", exempt: true},
	} {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, w *world) {
				from, to, server := w.peer, w.pod, podV4
				if c.out {
					from, to, server = w.pod, w.peer, peerV4
				}
				ln := netnstest.Listen(t, to, server+":0")
				defer ln.Close()
				dialled, accepted, local := pair(t, from, ln)
				pod, peer := accepted, dialled
				if c.out {
					pod, peer = dialled, accepted
				}
				netnstest.Run(t, w.peer, fmt.Sprintf(c.hold, "A"))
				if c.firstEnd == "pod" {
					pod.Close()
					if c.hold == fins {
						netnstest.Eventually(t, patience, "the pod's end is acknowledged", w.has(t, c.waitState))
					}
					peer.Close()
				} else {
					peer.Close()
					eof(t, "the pod", pod)
					pod.Close()
				}
				netnstest.Eventually(t, patience, "the pod's socket is "+c.waitState, w.has(t, c.waitState))
				release := func() {
					netnstest.Run(t, w.peer, fmt.Sprintf(c.hold, "D"))
					netnstest.Eventually(t, 2*patience, "the connection is over", func() bool { return !w.has(t, c.waitState)() })
				}
				if err := w.kernel.Fill(t.Context(), w.pod, w.set); err != nil {
					t.Fatal(err)
				}
				if !c.exempt {
					release()
				}
				w.enrol(t)
				if c.exempt {
					release()
				}
				conn, err := dialFrom(t.Context(), from, local, ln.Addr().String())
				if err != nil {
					t.Fatalf("the next connection with the same ports: %v\n%s", err, netnstest.Run(t, w.pod, "conntrack -L"))
				}
				defer conn.Close()
				io.WriteString(conn, "secret\n")
				netnstest.Eventually(t, patience, "it goes to the proxy", func() bool { return w.proxied.Load() == 1 })
				if c.out && w.link.Contains(t, "secret") {
					t.Error("payload in clear on the link")
				}
			})
		})
	}
}

// pair is one connection, from a port that can be used again at once.
func pair(t *testing.T, from ns.NetNS, ln net.Listener) (dialled, accepted *net.TCPConn, local net.Addr) {
	t.Helper()
	d, err := dialFrom(t.Context(), from, nil, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return d.(*net.TCPConn), a.(*net.TCPConn), d.LocalAddr()
}

// dialFrom dials in a network namespace from a local address, if that is not nil, that may be in TIME_WAIT.
func dialFrom(ctx context.Context, netns ns.NetNS, local net.Addr, addr string) (conn net.Conn, err error) {
	var d net.Dialer
	d.Timeout, d.LocalAddr = patience, local
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		var opt error
		err := raw.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		if err != nil {
			return err
		}
		return opt
	}
	inErr := netns.Do(func(ns.NetNS) error {
		conn, err = d.DialContext(ctx, "tcp4", addr)
		return err
	})
	return conn, inErr
}

// has says whether the pod has a socket in a state.
func (w *world) has(t *testing.T, state string) func() bool {
	return func() bool {
		return strings.TrimSpace(netnstest.Run(t, w.pod, "ss -Htan state "+state)) != ""
	}
}
