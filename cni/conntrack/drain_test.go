package conntrack

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/netnstest"
)

// echo answers every byte of every connection that the listener takes.
func echo(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

// tunnelled opens, in a captured pod, what a proxy has of one connection in either direction: one that the application
// opened and that ends at the proxy, and one that the proxy opened to the application under a client's address.
func tunnelled(t *testing.T, w *world, server, client string) (out, in *net.TCPConn) {
	t.Helper()
	out = netnstest.Dial(t, w.pod, net.JoinHostPort(server, "80"))
	app := netnstest.Listen(t, w.pod, "[::]:0")
	go echo(app)
	local := podV4
	if netip.MustParseAddr(client).Is6() {
		local = podV6
	}
	dialer := net.Dialer{
		Timeout:   patience,
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(client), api.InboundPortFirst)),
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			if cerr := c.Control(func(fd uintptr) { err = transparent(int(fd)) }); cerr != nil {
				return cerr
			}
			return err
		},
	}
	err := w.pod.Do(func(ns.NetNS) error {
		conn, err := dialer.DialContext(context.Background(), "tcp", net.JoinHostPort(local, portOf(app)))
		if err == nil {
			in = conn.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		t.Fatalf("dial the application as %s: %v", client, err)
	}
	t.Cleanup(func() { in.Close() })
	return out, in
}

func transparent(fd int) error {
	for _, opt := range []struct{ level, name, value int }{
		{unix.SOL_IP, unix.IP_TRANSPARENT, 1}, {unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1}, {unix.SOL_SOCKET, unix.SO_MARK, api.MarkProxy},
	} {
		err := unix.SetsockoptInt(fd, opt.level, opt.name, opt.value)
		if err != nil && !(opt.level == unix.SOL_IPV6 && err == unix.ENOPROTOOPT) {
			return err
		}
	}
	return nil
}

func roundTrip(t *testing.T, what string, c net.Conn) {
	t.Helper()
	send(t, what, c, c)
}

// TestUnhookLeavesTunnelledConnectionsAlone, in both directions, while new ones of the pod go out plain; and Remove is
// what they do not survive, so the order matters.
func TestUnhookLeavesTunnelledConnectionsAlone(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		if err := w.kernel.Apply(t.Context(), w.pod, w.set); err != nil {
			t.Fatal(err)
		}
		go echo(netnstest.Listen(t, w.pod, "[::]:15001"))
		out4, in4 := tunnelled(t, w, peerV4, peerV4)
		out6, in6 := tunnelled(t, w, peerV6, peerV6)
		conns := map[string]net.Conn{"out v4": out4, "in v4": in4, "out v6": out6, "in v6": in6}
		for name, c := range conns {
			roundTrip(t, name+" captured", c)
		}
		if use, err := (Kernel{}).Usage(w.pod); err != nil || use.Connections != 2 || use.Carried != 2 || !use.Listening {
			t.Errorf("use %+v, %v", use, err)
		}
		if err := w.kernel.Unhook(t.Context(), w.pod); err != nil {
			t.Fatal(err)
		}
		for name, c := range conns {
			roundTrip(t, name+" un-hooked", c)
		}
		plain := netnstest.Listen(t, w.peer, "[::]:80")
		go echo(plain)
		conn := netnstest.Dial(t, w.pod, net.JoinHostPort(peerV4, "80"))
		roundTrip(t, "plain again", conn)
		if w.link.Contains(t, "captured") || !w.link.Contains(t, "plain again") {
			t.Error("a tunnelled connection was seen on the link, or the plain one was not")
		}
		if err := w.kernel.Remove(t.Context(), w.pod); err != nil {
			t.Fatal(err)
		}
		in4.SetDeadline(time.Now().Add(time.Second))
		io.WriteString(in4, "x")
		if _, err := in4.Read(make([]byte, 1)); err == nil {
			t.Error("a tunnelled connection survived Remove: the test does not see what the rules are for")
		}
		// With the last rule that needs connection tracking, and with the nft kind the built-in chain of table nat, goes the
		// translation of connections that were redirected.
		out4.SetDeadline(time.Now().Add(time.Second))
		io.WriteString(out4, "x")
		if _, err := out4.Read(make([]byte, 1)); err == nil {
			t.Error("a redirected connection survived Remove")
		}
	})
}

// TestHalfCloseOutlivesConntrack: after the server's end of stream, connection tracking forgets a connection in 60 s. The
// application that sends later still reaches the proxy, and nothing is in clear; and the other way round, where the
// kernel's entry is needed for the answer, Hold keeps it.
func TestHalfCloseOutlivesConntrack(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		if err := w.kernel.Apply(t.Context(), w.pod, w.set); err != nil {
			t.Fatal(err)
		}
		forget := 90 * time.Second
		if os.Getenv("AMBIT_SOAK") == "" {
			// What takes 60 s and 120 s takes one here.
			forget = 2500 * time.Millisecond
			set(t, w.pod, "nf_conntrack_tcp_timeout_close_wait", "1")
			set(t, w.pod, "nf_conntrack_tcp_timeout_fin_wait", "1")
		}
		ln := netnstest.Listen(t, w.pod, "[::]:15001")
		pair := func() (app, proxy *net.TCPConn) {
			app = netnstest.Dial(t, w.pod, net.JoinHostPort(peerV4, "80"))
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return app, conn.(*net.TCPConn)
		}
		entries := func() string { return netnstest.Run(t, w.pod, "conntrack -L -p tcp") }
		forgotten := func() bool { return entries() == "" }

		app, proxy := pair()
		proxy.CloseWrite()
		eof(t, "server closed", app)
		netnstest.Eventually(t, 2*forget+patience, "the entry is forgotten", forgotten)
		send(t, "secret after the server closed", app, proxy)
		app.CloseWrite()
		eof(t, "application closed", proxy)
		app.Close()
		proxy.Close()

		netnstest.Run(t, w.pod, "conntrack -F")
		if os.Getenv("AMBIT_SOAK") == "" {
			// Longer, since the entry must be held before the kernel forgets it.
			forget = 12 * time.Second
			set(t, w.pod, "nf_conntrack_tcp_timeout_close_wait", "10")
			set(t, w.pod, "nf_conntrack_tcp_timeout_fin_wait", "10")
		}
		app, proxy = pair()
		app.CloseWrite()
		eof(t, "application closed", proxy)
		netnstest.Eventually(t, patience, "the end of stream is acknowledged", func() bool { return strings.Contains(entries(), "CLOSE_WAIT") })
		if err := (Kernel{}).Hold(w.pod); err != nil {
			t.Fatal(err)
		}
		netnstest.Eventually(t, 2*forget+patience, "time for the kernel to forget", elapsed(forget))
		if forgotten() {
			t.Fatal("the entry was not held")
		}
		send(t, "secret answer after the application closed", proxy, app)
		if w.link.Contains(t, "secret") {
			t.Error("payload in clear on the link")
		}
	})
}

// TestReEnrolmentDoesNotExemptTunnelledConnections, even where their entries have been lost.
func TestReEnrolmentDoesNotExemptTunnelledConnections(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		if err := w.kernel.Apply(t.Context(), w.pod, w.set); err != nil {
			t.Fatal(err)
		}
		go echo(netnstest.Listen(t, w.pod, "[::]:15001"))
		out, in := tunnelled(t, w, peerV4, peerV4)
		roundTrip(t, "secret out", out)
		roundTrip(t, "secret in", in)
		if err := w.kernel.Unhook(t.Context(), w.pod); err != nil {
			t.Fatal(err)
		}
		netnstest.Run(t, w.pod, "conntrack -F")
		if n, err := (Kernel{}).Exempt(w.pod); err != nil || n != 0 {
			t.Errorf("exempted %d, %v", n, err)
		}
		if err := w.kernel.Hook(t.Context(), w.pod, w.set); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, "secret out again", out)
		roundTrip(t, "secret in again", in)
		if w.link.Contains(t, "secret") {
			t.Error("payload in clear on the link")
		}
	})
}

func TestExemptions(t *testing.T) {
	at := netip.MustParseAddrPort
	all := []socket{
		{at("0.0.0.0:8080"), at("0.0.0.0:0"), tcpListen},
		{at("10.0.0.1:8080"), at("10.0.0.9:4000"), 1},             // in
		{at("10.0.0.1:5000"), at("10.0.0.9:443"), tcpCloseWait},   // out
		{at("10.0.0.1:5001"), at("10.0.0.9:443"), 2},              // out, SYN sent
		{at("10.0.0.1:5002"), at("10.0.0.9:443"), tcpTimeWait},    // over
		{at("127.0.0.1:5003"), at("127.0.0.1:9"), 1},              // loopback
		{at("10.0.0.1:5004"), at("10.0.0.1:8080"), 1},             // itself
		{at("10.0.0.1:8080"), at("10.0.0.1:5004"), 1},             //
		{at("10.0.0.1:5005"), at("10.0.0.9:80"), 1},               // redirected
		{at("127.0.0.1:15001"), at("10.0.0.1:5005"), 1},           // its other end
		{at("10.0.0.1:15008"), at("10.0.0.9:6000"), 1},            // the proxy's
		{at("10.0.0.9:16384"), at("10.0.0.1:8080"), 1},            // the proxy's, as the client
		{at("10.0.0.1:8080"), at("10.0.0.9:16384"), tcpCloseWait}, // its other end
		{at("[fd00::1]:8080"), at("[fd00::9]:4000"), tcpFinWait2}, // in
	}
	want := []exemption{
		{flow{at("10.0.0.9:4000"), at("10.0.0.1:8080")}, 1}, {flow{at("10.0.0.1:5000"), at("10.0.0.9:443")}, tcpCloseWait},
		{flow{at("10.0.0.1:5001"), at("10.0.0.9:443")}, 2}, {flow{at("[fd00::9]:4000"), at("[fd00::1]:8080")}, tcpFinWait2},
	}
	got := exemptions(all)
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
}
